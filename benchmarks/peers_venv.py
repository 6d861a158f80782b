"""A venv for packages that are compared with ours, made of a file of pinned versions."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from artifact.errors import ResiduumError


class PeersFailed(ResiduumError):
    """A peer cannot be installed, or does not do as it should."""


def make_venv(venv: Path, requirements: Path) -> Path:
    """Create or renew it, which takes minutes, and says so; returns its Python.

    Raises:
        PeersFailed: pip failed.
    """
    python = venv / "bin" / "python"
    stamp = venv / "requirements.sha256"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="ascii") == wanted:
        return python
    print(f"installing the peers into {venv} ...", file=sys.stderr, flush=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
    for command in ([sys.executable, "-m", "venv", str(venv)], [str(python), *install]):
        if subprocess.run(command, check=False).returncode:
            raise PeersFailed(f"{' '.join(command)} failed")
    (venv / ".gitignore").write_text("*\n", encoding="ascii")  # as newer Pythons do themselves
    stamp.write_text(wanted, encoding="ascii")
    return python
