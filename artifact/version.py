"""The version of Residuum that is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version, or "0" in a checkout that is not installed."""
    try:
        return version("residuum")
    except PackageNotFoundError:
        return "0"
