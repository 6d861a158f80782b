"""Virtual environments for other projects' packages, made from files of pinned versions."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from artifact.errors import ResiduumError


class PeersFailed(ResiduumError):
    """Another project's package cannot be installed, or does not work as expected."""


def make_venv(venv: Path, requirements: Path) -> Path:
    """Create or renew the venv, which takes minutes and prints a message; return its Python.

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
    (venv / ".gitignore").write_text("*\n", encoding="ascii")  # newer Pythons write this file themselves
    stamp.write_text(wanted, encoding="ascii")
    return python
