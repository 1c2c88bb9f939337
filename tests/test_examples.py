"""Every example runs as it stands and says what it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "many_streams.py": r"32 frames of 4 streams in .* s: .* frames a second\n(stream \d: \w+\n){4}",
    "answer_while_watching.py": r"(\[\d+\.5 s\] which shape .* now\?\n\[\d+\.\d s\] \w+, for \d+\.5 s\n){3}",
}


def run(*arguments: object, folder: Path) -> str:
    """What a Python program prints; it must succeed."""
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "140"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tried_here_and_short() -> None:
    files = {path.name for path in EXAMPLES.glob("*.py")}
    assert files == {*SAYS, "demo.py", "brightest.py"}
    for name in files - {"demo.py"}:
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 40, name


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    assert re.fullmatch(SAYS[name], run(EXAMPLES / name, folder=tmp_path))


def test_the_compressor_in_a_file_is_used_by_the_command_it_names(tmp_path: Path) -> None:
    told = re.search(r"`onlooker (.*)`", (EXAMPLES / "brightest.py").read_text(encoding="utf-8"))
    assert told and "examples/brightest.py:keep=12" in told[1]
    chosen = ["--compressor", f"{EXAMPLES / 'brightest.py'}:keep=12", "--at", 2, "--json"]
    out = run("-m", "onlooker", "ask", "synthetic:3", "which shape is at the top now?", *chosen, folder=tmp_path)
    assert '"tokens_kept": 36' in out


def test_the_demo_shows_answers_truth_time_tokens_and_bytes(tmp_path: Path) -> None:
    out = run(EXAMPLES / "demo.py", folder=tmp_path)
    rows = [line for line in out.splitlines() if re.match(r"\d+\.\d s ", line)]
    assert len(rows) >= 4 and all(row.endswith(("right", "wrong")) for row in rows)
    assert len({row.split()[0] for row in rows}) >= 4 and sum(row.endswith("right") for row in rows) > len(rows) / 2
    assert re.search(r"stages: .*encode \d+\.\d+ s.*prefill \d", out)
    assert re.search(r"tokens kept: +\d+ of \d+ seen", out) and re.search(r"memory in bytes: [\d,]+ \(", out)
    with Image.open(tmp_path / "out" / "demo" / "overlay.png") as picture:
        assert picture.width > 900
    assert (tmp_path / "out" / "demo" / "clip.mp4").stat().st_size > 10_000
