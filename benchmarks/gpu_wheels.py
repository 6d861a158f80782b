"""Carry the packages that a machine without a network lacks: wheels, large ones in pieces.

    python -m benchmarks.gpu_wheels FOLDER      # make gpu-wheels; here, with a network
    python -m benchmarks.gpu --wheels FOLDER    # make bench-gpu ARGS="--wheels FOLDER"; there, without one

The wheels of `PACKAGES` are for Python 3.12 on x86-64 Linux, in the versions of constraints.txt. The machine
has torch, onnx, onnxscript, Pillow, numpy and other packages in wide use. A large wheel is split into
NAME.whl.00, NAME.whl.01 and so on, which can travel one by one. Only the standard library is imported here,
because this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIECE_BYTES = 20 * 10**6  # what fits beside a copy of the checkout into 64 MiB
PYTHON_VERSION = "3.12"
PLATFORMS = ("2_28", "2_27", "2_17", "2_5", "2_34")  # manylinux; pip compares them exactly
PACKAGES = (
    # Serving.
    "onnxruntime-gpu",
    "annotated-types", "cachetools", "fastapi", "fastapi-offline", "httptools", "opentelemetry-api",
    "platformdirs", "pydantic", "pydantic-core", "pydantic-settings", "python-dotenv", "python-multipart",
    "rich-argparse", "shtab", "simplejpeg", "starlette", "typing-inspection", "uvicorn", "uvloop",
    "watchfiles", "websockets",
    # Training.
    "datasets", "dill", "lightning-fabric", "lightning-utilities", "multiprocess",
)  # fmt: skip


class WheelsError(RuntimeError):
    """Wheels cannot be fetched, joined or installed; the message says why."""


def fetch(folder: Path, piece_bytes: int = PIECE_BYTES) -> list[Path]:
    """Download the wheels, split the large ones, and return the files; those of an earlier call are removed.

    Raises:
        WheelsError: pip failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("*.whl", "*.whl.[0-9][0-9]"):
        for old in folder.glob(pattern):
            old.unlink()
    platforms = [word for tag in PLATFORMS for word in ("--platform", f"manylinux_{tag}_x86_64")]
    _pip(
        "download", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON_VERSION,
        "--implementation", "cp", *platforms, "--platform", "manylinux2014_x86_64",
        "--constraint", str(ROOT / "constraints.txt"), "--dest", str(folder), *PACKAGES,
    )  # fmt: skip
    for wheel in folder.glob("*.whl"):
        if wheel.stat().st_size > piece_bytes:
            split(wheel, piece_bytes)
    return sorted(folder.glob("*.whl*"))


def split(wheel: Path, piece_bytes: int) -> list[Path]:
    """Replace a wheel by its pieces, and return them."""
    pieces = []
    with wheel.open("rb") as source:
        while data := source.read(piece_bytes):
            pieces.append(wheel.with_name(f"{wheel.name}.{len(pieces):02}"))
            pieces[-1].write_bytes(data)
    wheel.unlink()
    return pieces


def join(folder: Path, into: Path) -> list[Path]:
    """Return every wheel of `folder`; those in pieces are joined in `into`.

    Raises:
        WheelsError: a piece is missing, or what comes of the pieces is no wheel.
    """
    wheels = sorted(folder.glob("*.whl"))
    into.mkdir(parents=True, exist_ok=True)
    for name in sorted({path.stem for path in folder.glob("*.whl.[0-9][0-9]")}):
        pieces = sorted(folder.glob(f"{name}.[0-9][0-9]"))
        wheels.append(into / name)
        with wheels[-1].open("wb") as target:
            for number, piece in enumerate(pieces):
                if piece.suffix != f".{number:02}":
                    raise WheelsError(f"{folder / name}: piece {number:02} is missing")
                with piece.open("rb") as source:
                    shutil.copyfileobj(source, target)
        if not zipfile.is_zipfile(wheels[-1]):
            raise WheelsError(f"{folder / name}: its {len(pieces)} pieces are no whole wheel")
    if not wheels:
        raise WheelsError(f"{folder} holds no wheels")
    return wheels


def install(folder: Path, target: Path) -> None:
    """Install the wheels of `folder` into the directory `target`, which goes in front of PYTHONPATH.

    Raises:
        WheelsError: see `join`; or pip failed.
    """
    wheels = join(folder, target.with_name(f"{target.name}.joined"))
    _pip(
        "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade",
        "--target", str(target), *map(str, wheels),
    )  # fmt: skip


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise WheelsError(f"pip {arguments[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the wheels")
    parser.add_argument(
        "--piece-mb", type=int, default=PIECE_BYTES // 10**6, help="largest file (default: %(default)s MB)"
    )
    args = parser.parse_args(arguments)
    try:
        files = fetch(args.folder, args.piece_mb * 10**6)
    except WheelsError as error:
        print(f"benchmarks.gpu_wheels: {error}", file=sys.stderr)
        return 1
    for file in files:
        print(f"{file.stat().st_size / 1e6:8.1f} MB  {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
