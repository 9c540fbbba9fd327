"""Freed memory is used again, in a process of its own, since the setting is for good."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, sys
from gifthorse.core.heap import keep_freed
if sys.argv[1] == "kept" and not keep_freed():
    sys.exit(3)
for turn in range(21):
    block = bytearray(48 << 20)  # zeros: every page is touched
    block[:: 4096] = b"x" * len(block[:: 4096])
    del block
    if turn == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_large_blocks_are_used_again_and_not_mapped_anew() -> None:
    faults = {
        kind: subprocess.run([sys.executable, "-c", CODE, kind], capture_output=True, check=False)
        for kind in ("kept", "usual")
    }
    if faults["kept"].returncode == 3:
        pytest.skip("this C library has no such setting")
    kept, usual = (int(ran.stdout) for ran in faults.values())
    assert kept * 10 < usual
