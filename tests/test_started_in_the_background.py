"""The tests work where whoever starts them ignores signals: a script with `make test &`, nohup, some runners."""

import subprocess
import sys
from pathlib import Path

CHILD = "import signal; print(signal.getsignal(signal.SIGINT).__name__, signal.getsignal(signal.SIGTERM).name)"
IGNORING = f"""
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
import conftest
sys.exit(subprocess.run([sys.executable, "-c", {CHILD!r}]).returncode)
"""


def test_what_a_test_starts_can_be_interrupted_though_the_tests_parent_ignores_that() -> None:
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", IGNORING], cwd=here, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["default_int_handler", "SIG_DFL"], done.stderr
