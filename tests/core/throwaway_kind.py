"""A program in which a kind of method is declared that the library has never heard of, and used from everywhere.

`python throwaway_kind.py MODEL FOLDER` prints what each place knew of it, as JSON.
Nothing but the declaration is added.
"""

import contextlib
import inspect
import io
import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

from onlooker.core.kinds import KINDS, Kind

MODEL, FOLDER = sys.argv[1], Path(sys.argv[2])
KINDS["echo"] = Kind("echo", "echo_room", "echo_base:Echo", "What is heard again.", default="loud:volume=4")

from onlooker.core.contracts import Method  # noqa: E402 - a program that declares a kind does so first
from onlooker.core.state import StreamState  # noqa: E402

OPENED: list[int] = []
"""The setting of every method of this kind that made a state."""


class Echo(Method):
    """The kind."""


@dataclass(frozen=True)
class Loud(Echo):
    """A method of it."""

    volume: int = 8
    """How loud."""

    def new_state(self) -> StreamState:
        """Notes that it was used."""
        OPENED.append(self.volume)
        return StreamState()


def declare() -> None:
    """The room, as a package and its file would make it."""
    room, module = types.ModuleType("echo_room"), types.ModuleType("echo_room.loud")
    room.__path__ = [str(FOLDER)]
    (FOLDER / "loud.py").write_text('"""Loud."""\n', encoding="utf-8")
    vars(module)["Loud"] = Loud
    Loud.__module__ = module.__name__
    base = types.ModuleType("echo_base")
    vars(base)["Echo"] = Echo
    sys.modules |= {room.__name__: room, module.__name__: module, base.__name__: base}


def ran(*words: str) -> dict[str, object]:
    """What a command did, and which settings of the method it worked with."""
    from onlooker.cli import main

    OPENED.clear()
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
    return {"code": code, "volumes": sorted(set(OPENED)), "said": out.getvalue()}


def main() -> None:
    """Use it from everywhere."""
    declare()
    from onlooker.cli import ask, bench_load, bench_streams, evaluate, serve, watch
    from onlooker.evals.run_settings import RunSettings, from_dict
    from onlooker.server.config import read_config

    commands = [ask.ask, watch.watch, evaluate.evaluate, serve.serve, bench_streams.streams, bench_load.soak]
    model = ["--model", MODEL]
    clip = ["synthetic:3:4", "what is there?"]
    small = [*model, "--encoder", "full", "--compressor", "identity", "--memory", "full"]
    found = {
        "options": [inspect.signature(command).parameters["echo"].default for command in commands],
        "ask": ran("ask", *clip, *model, "--echo", "loud:volume=2", "--json"),
        "watch": ran("watch", "synthetic:3:4", "--pace", "max", *model, "--echo", "loud:volume=2"),
        "eval": ran("eval", "pocketworld", "--limit", "1", *small, "--echo", "loud:volume=3", "--json"),
        "soak": ran("bench", "soak", "--frames", "101", "--early", "50", "--echo", "loud:volume=5"),
        "serve": ran("serve", "pocket", "--echo", "lowd"),
        "methods": ran("methods", "loud"),
        "config": repr(read_config(None, text='[model]\necho = "loud:volume=6"').engine_settings()["echo"]),
        "served": repr(read_config(None, text="").engine_settings()["echo"]),
        "setting": repr(from_dict({"echo": "loud:volume=7"}).methods["echo"]),
        "keys_differ": RunSettings().key != from_dict({"echo": "loud:volume=7"}).key,
        "label": RunSettings().label,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
