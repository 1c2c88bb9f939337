"""The quick kernels in Triton's interpreter, against plain PyTorch. Each file of slow ones has a process of its own."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PASSED = {
    "ranges": 8,
    "turning": 15,
    "likeness": 5,
    "language_rows": 5,
    "pooled": 5,
    "picks": 3,
    "groups": 25,
    "ranks": 17,
}
"""How many tests of each file the interpreter runs at least."""


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="is the outer one")
def test_in_the_interpreter():
    """Triton reads its mode when it is first imported, so interpreted kernels have a process of their own; one for all
    of these, because to begin takes longer than any of them."""
    pytest.importorskip("triton")
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in PASSED]
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-m", "not gpu", *files]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert Counter(re.findall(r"^PASSED \S*/test_(\w+)\.py", done.stdout, re.MULTILINE)) >= Counter(PASSED)
