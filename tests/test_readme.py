"""What the README shows is so: its commands run, its example prints what stands below it, its lists are up to date."""

import contextlib
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from ports import free_port

from onlooker.cli import main
from onlooker.world import make_episode, write_video

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = [line for line in LINES if line.startswith("onlooker ")]
SHORTER = {"eval": ["--limit", "4"], "bench": ["--repeats", "3"], "watch": ["--pace", "max"]}
"""What is added so that a test does not take as long as the real thing."""

sys.path.insert(0, str(ROOT / "tools"))
import readme  # noqa: E402 - a tool, no part of the package


def test_the_first_screen_has_what_it_should() -> None:
    screen = TEXT.split("## Live")[0]
    assert (ROOT / "docs" / "overlay.png").stat().st_size < 600_000 and "docs/overlay.png" in screen
    assert len([line for line in screen.splitlines() if line.startswith(("pip ", "onlooker "))]) == 2
    assert len(readme.example(TEXT)[0].strip().splitlines()) <= 10
    shown = {line.split()[1] for line in COMMANDS}
    assert shown == {"ask", "serve", "watch", "methods", "plan", "bench", "eval", "doctor"}


@pytest.mark.parametrize("line", [line for line in COMMANDS if "serve" not in line])
def test_a_command_of_the_readme_runs(line: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)
    write_video(make_episode(3, "test", duration_s=6.0), tmp_path / "clip.mp4")
    words = shlex.split(line)[1:]
    with pytest.raises(SystemExit) as stop:
        main([*words, *SHORTER.get(words[0], [])])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    assert printed.out or words[0] == "watch"
    for name in re.findall(r"--overlay (\S+)", line):
        assert (tmp_path / name).stat().st_size > 10_000


def test_the_server_of_the_readme_shows_its_page() -> None:
    (line,) = [line for line in COMMANDS if "serve" in line]
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", *shlex.split(line), "--port", str(port)], cwd=ROOT)
    try:
        for _ in range(600):
            time.sleep(0.5)
            assert server.poll() is None, "the server ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
                assert b"<title>Onlooker" in page.read()
                break
        else:
            pytest.fail("no page")
    finally:
        server.terminate()
        code = server.wait(timeout=120)
    assert code == 0


def test_the_example_prints_what_the_readme_says() -> None:
    code, output = readme.example(TEXT)
    assert output.strip() and readme.printed(code) == output, "run make readme"


def test_lists_and_captions_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "captions.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
