"""Two real RTSP servers, a file of ten lines, and a server that is killed: what was said and seen is found again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from live_servers import need_rtsp

pytestmark = [pytest.mark.live, pytest.mark.slow]


def test_a_killed_server_finds_what_was_said_and_its_clips_play(tmp_path):
    need_rtsp()
    words = ["--kills", "3", "--longest", "16", "--log", str(tmp_path / "log")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.server_kills", *words],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:], (tmp_path / "log").read_text()[-2000:])
    found = json.loads(done.stdout)
    assert found["lost"] == found["changed"] == found["not_found_by_word"] == found["clips_broken"] == 0
    assert found["events"]["alert"] and found["events"]["answer"] and found["pictures_in_a_clip"]["fewest"] >= 5
