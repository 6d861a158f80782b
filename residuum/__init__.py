"""Serves pretrained ResNets and shows what every residual block adds. Importing this package is cheap."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """Return `__version__`, which is looked up only when asked for: that takes longer than this import."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from artifact.version import installed_version

    return installed_version()
