"""What is freed goes back to the system, also after a large block was freed once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.process import allocator
from tests.support.live import ROOT

# The first block teaches glibc that such sizes come and go; the second lies in its heap then, below others.
PROGRAM = """
from benchmarks.soak_batches import resident_mib
from service.process import allocator
{call}
block = bytearray(24 * 2**20); del block
block = bytearray(20 * 2**20)
small = [bytearray(1000) for _ in range(1000)]
before = resident_mib()
del block
print(before - resident_mib())
"""


def given_back(call: str) -> float:
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_freed_block_goes_back_to_the_system() -> None:
    assert given_back("assert allocator.give_back()") > 19
    assert given_back("") < 1  # if this fails, glibc no longer needs to be told


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.give_back()
