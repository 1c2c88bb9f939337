"""A kind of method is data: one declaration, and everything that names kinds has it."""

import dataclasses
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from onlooker.core import registry
from onlooker.core.contracts import Method
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.core.kinds import KINDS, Kind, of_engine
from onlooker.core.state import StreamState
from onlooker.engine import Engine
from onlooker.engine.slo import default_levels

ROOM = "onlooker_test_room"


@dataclass
class Counted(StreamState):
    frames: int = 3
    names: list[str] = dataclasses.field(default_factory=list)


class Echo(Method):
    """A kind of its own."""


@dataclass(frozen=True)
class Loud(Echo):
    """A method of that kind."""

    volume: int = 8
    """How loud."""

    def new_state(self):
        return Counted(names=["echo"])

    def less(self):
        return dataclasses.replace(self, volume=self.volume // 2) if self.volume > 1 else None


@pytest.fixture
def echo(monkeypatch, tmp_path):
    """The new kind, as its one declaration makes it; its room is a package like any other."""
    room = types.ModuleType(ROOM)
    room.__path__ = [str(tmp_path)]
    (tmp_path / "loud.py").write_text("", encoding="utf-8")
    module = types.ModuleType(f"{ROOM}.loud")
    module.Loud = Loud
    monkeypatch.setattr(Loud, "__module__", module.__name__)
    monkeypatch.setattr(Echo, "__module__", __name__)
    monkeypatch.setitem(sys.modules, ROOM, room)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "onlooker_test_base", types.SimpleNamespace(Echo=Echo))
    kind = Kind("echo", ROOM, "onlooker_test_base:Echo", "What is heard again.", default="loud:volume=4")
    monkeypatch.setitem(KINDS, "echo", kind)
    return kind


def watched(engine: Engine):
    session = engine.open()
    for second in range(3):
        session.push(Frame(np.full((56, 56, 3), 50 * second, np.uint8), float(second)))
    return session


def test_a_new_kind_is_one_declaration(echo, tiny_model):
    assert registry.names("echo") == ["loud"]
    plain = {"encoder": "full", "compressor": "identity", "memory": "full"}
    engine = Engine(tiny_model, **plain)
    assert engine.methods["echo"] == Loud(4), "the default"
    engine = Engine(tiny_model, **plain, echo="loud:volume=2")
    assert engine.methods["echo"] == Loud(2)
    session = watched(engine)
    assert session.states["echo"] == Counted(3, ["echo"])
    session.states["echo"].frames = 9
    assert "echo_state" in session.stats().memory_bytes
    twin = session.fork()
    twin.states["echo"].names.append("other")
    assert session.states["echo"].names == ["echo"]
    saved = session.export()
    assert engine.load(saved).states["echo"] == Counted(9, ["echo"])
    with pytest.raises(InputError, match="other methods"):
        Engine(tiny_model, **plain, echo="loud:volume=3").load(saved)
    assert default_levels(engine)[-1].methods == {"echo": Loud(1)}
    engine.use(echo=Loud(1))
    assert engine.methods["echo"] == Loud(2), "as it was configured"
    session.close()
    assert session.states["echo"] == Counted(3, ["echo"])


def test_the_command_line_has_an_option_for_it(echo):
    import inspect

    from onlooker.cli import options

    @options.takes_methods(echo="loud")
    def command(source: str, methods: dict | None = None, last: int = 1) -> dict:
        assert methods is not None
        return methods

    names = list(inspect.signature(command).parameters)
    assert names == ["source", *of_engine(), "last"] and "echo" in names
    assert inspect.signature(command).parameters["echo"].default == "loud"
    given = {kind: f"{kind}!" for kind in of_engine()}
    assert command(source="x", **given) == given
    settings = options.engine_settings({"echo": "loud:volume=5", "memory": "full"})
    assert settings["echo"] == Loud(5)


def test_an_argument_that_is_no_kind_is_refused_with_the_nearest(tiny_model):
    with pytest.raises(InputError, match="did you mean encoder"):
        Engine(tiny_model, encodr="full")
    with pytest.raises(InputError, match="methods are gate, encoder, compressor, memory"):
        Engine(tiny_model, response="threshold")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_there_is_whole(kind):
    assert issubclass(KINDS[kind].load_base(), Method) and KINDS[kind].help
    if (default := KINDS[kind].default) is not None:
        assert isinstance(registry.make(kind, default), KINDS[kind].load_base())


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in registry.names(kind)], ids=lambda part: part
)
def test_what_has_less_to_do_says_so_and_comes_to_an_end(kind, name):
    method, steps = registry.make(kind, name), 0
    while (lighter := method.less()) is not None and steps < 5:
        assert type(lighter) is type(method) and lighter != method
        method, steps = lighter, steps + 1


def test_the_least_setting_has_nothing_lighter():
    assert registry.make("compressor", "stc_pruner:keep=1").less() is None
    assert registry.make("compressor", "thumbnail:sampled=1").less() is None
