"""A way to run commands in this process, a clip to run them on, and the tiny checkpoint's options."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onlooker.cli import main
from onlooker.world import make_episode, write_video


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("ask", ..., typed="lines of input")` gives the exit code and what was printed."""

    def run_command(*arguments: object, typed: str | None = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", None if typed is None else io.StringIO(typed))
        capsys.readouterr()
        code: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return run_command


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of Pocket World as H.264, wider than high."""
    path = tmp_path_factory.mktemp("film") / "clip.mp4"
    write_video(make_episode(4, "test", duration_s=6.0), path, fps=4, size=(64, 96))
    return path


@pytest.fixture(scope="session")
def model(tiny_folder: Path) -> list[str]:
    """Options that choose the tiny checkpoint on the CPU."""
    return ["--model", str(tiny_folder), "--device", "cpu"]
