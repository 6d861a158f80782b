"""What is freed goes back to the system, also after a large block was freed once, and from between blocks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.runtime import allocator
from tests.support.live import ROOT

START = """
from benchmarks.soak_batches import resident_mib
from service.runtime import allocator
"""
# The first block teaches glibc that such sizes come and go; the second lies in its heap then, below others.
LARGE = """
{call}
block = bytearray(24 * 2**20); del block
block = bytearray(20 * 2**20)
small = [bytearray(1000) for _ in range(1000)]
before = resident_mib()
del block
print(before - resident_mib())
"""
# Every second one of many blocks is freed, the last one in the heap is not.
HOLES = """
blocks = [bytearray(2**16) for _ in range(640)]
before = resident_mib()
del blocks[::2]
{call}
print(before - resident_mib())
"""


def given_back(program: str, call: str) -> float:
    """Return the MiB by which the process is smaller at the program's end."""
    command = [sys.executable, "-c", START + program.format(call=call)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_freed_block_goes_back_to_the_system() -> None:
    assert given_back(LARGE, "assert allocator.give_back()") > 19
    assert given_back(LARGE, "") < 1  # if this fails, glibc no longer needs to be told


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_trimming_returns_what_was_freed_between_blocks() -> None:
    assert given_back(HOLES, "allocator.trim()") > 17
    assert given_back(HOLES, "") < 1  # if this fails, there is nothing left to trim


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.give_back()
    allocator.trim()
