"""One method of every kind in `core/kinds.py`: from the library, the command line, a server's settings, and eval."""

import socket
from pathlib import Path
from typing import Any

import pytest

from onlooker.core import kinds, registry
from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.engine.scheduler import Scheduler
from onlooker.evals.run_settings import check, from_dict
from onlooker.evals.runs import execute
from onlooker.models import load
from onlooker.respond import Rule
from onlooker.server.bodies import RuleBody
from onlooker.server.config import Faulty, read_config
from onlooker.server.rules import rule_of
from onlooker.world import make_episode

QUESTION = "what is there now ?"
RULE = "what: what is there now ?"
METHODS = {
    "gate": "every_nth:n=2",
    "encoder": "stc_published:interval=2",
    "compressor": "uniform:keep=3",
    "memory": "rekv:topk=2,window_tokens=16",
    "refiner": "fastv:ratio=0.5",
    "think": "vst:every_s=2,longest=2",
    "response": "clock:period_s=2",
    "schedule": "round_robin",
    "codec": "int8",
}
"""One of each that is not the default."""


def chosen(kind: str, text: str) -> tuple[str, str]:
    """The setting that chooses a method of this kind, and its value."""
    return ("kv", f"host={text}") if kind == "codec" else (kind, text)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path):
    return load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return list(make_episode(3, "test", duration_s=6.0).frames(fps=1.0))


def test_the_table_has_all_kinds() -> None:
    assert METHODS.keys() == kinds.KINDS.keys()
    for kind, text in METHODS.items():
        usual = kinds.KINDS[kind].default or kinds.KINDS[kind].scheduled
        assert usual is None or registry.make(kind, text) != registry.make(kind, usual)


@pytest.mark.parametrize("kind", METHODS)
def test_from_the_library(kind: str, tiny: Any, frames: list[Frame]) -> None:
    text = METHODS[kind]
    if kind == "response":
        with Engine(tiny).open() as session:
            rule = Rule.from_text(RULE, registry.make(kind, text))
            watch = session.watch([rule])
            alerts = [alert for frame in frames for alert in watch.look(frame, session.push(frame))]
            assert watch.status()[0].looks == len(frames) and len(alerts) == 2
        return
    if kind == "schedule":
        scheduler = Scheduler(Engine(tiny), schedule=text)
        queue = scheduler.open(fps=1.0)
        queue.submit(frames[0])
        while not scheduler.step().events:
            assert queue.session.time_s is None
        scheduler.close()
        return
    name, value = chosen(kind, text)
    settings: Any = {name: value} | ({"memory": METHODS["memory"]} if kind == "codec" else {})
    engine = Engine(tiny, **settings)
    assert kind == "codec" or engine.methods[kind] == registry.make(kind, text)
    with engine.open() as session:
        for frame in frames:
            session.push(frame)
        assert session.ask(QUESTION, max_new_tokens=2).usage.prompt_tokens
    with pytest.raises(InputError, match="nothing"):
        Engine(tiny, **{name: value.replace(text, "nothing")})


@pytest.mark.parametrize("kind", METHODS)
def test_from_the_command_line(kind: str, run: Any, film: Path, model: list[str]) -> None:
    name, value = chosen(kind, METHODS[kind])
    if kind == "schedule":
        command = ["bench", "streams", *model[:2], "--device", "cpu", "--json", "--no-dense", "--most", "1"]
        command += ["--first", "1", "--trial", "0.3", "--seconds", "1", "--questions", "0", "--answer-tokens", "1"]
    elif kind == "response":
        command = ["watch", film, "--rule", RULE, "--json", "--pace", "max", *model]
    else:
        command = ["ask", film, QUESTION, "--json", "--max-new-tokens", "2", *model]
    done = run(*command, f"--{name}", value)
    assert done.code == 0, done.err
    refused = run(*command, f"--{name}", value.replace(METHODS[kind], "nothing"))
    assert refused.code == 2 and "nothing" in refused.err and len(refused.err.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", METHODS)
def test_from_a_servers_configuration_and_its_options(kind: str, run: Any, tmp_path: Path) -> None:
    name, value = chosen(kind, METHODS[kind])
    file = tmp_path / "onlooker.toml"
    file.write_text(f'[model]\n{name} = "{value}"\n', encoding="utf-8")
    config = read_config(file)
    made = config.engine_settings() | vars(config.server_settings())
    if kind == "codec":
        assert made["kv"] == value
    else:
        assert made[kind] == registry.make(kind, METHODS[kind])
    if kind == "response":
        assert rule_of("what", RuleBody(prompt="what?"), made["response"]).policy == made["response"]
        assert (
            rule_of("what", RuleBody(prompt="what?", policy="sved", then="answer"), made["response"]).as_dict()[
                "policy"
            ]
            == "sved"
        )
    wrong = value.replace(METHODS[kind], "nothing")
    with pytest.raises(Faulty, match="nothing"):
        read_config(None, {"model": {name: wrong}})
    with socket.socket() as taken:  # the option is read, and the address is not there to be listened at
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "cannot listen" in run("serve", "pocket", "--port", port, f"--{name}", value).err
        assert "nothing" in run("serve", "pocket", "--port", port, f"--{name}", wrong).err


@pytest.mark.parametrize("kind", METHODS)
def test_from_eval(kind: str, run: Any, tiny_folder: Path, model: list[str], tmp_path: Path) -> None:
    name, value = chosen(kind, METHODS[kind])
    if kind == "schedule":
        pytest.skip("eval has every frame looked at, so nobody is to be scheduled: bench streams measures schedules")
    if kind == "response":
        done = run("eval", "hours", *model, "--response", value, "--seconds", "120", "--json")
        assert done.code == 0, done.err
        assert run("eval", "hours", *model, "--response", "nothing", "--seconds", "120").code == 2
        return
    settings = from_dict({"model": str(tiny_folder), "device": "cpu", "limit": 1, "max_new_tokens": 2, name: value})
    check(settings)
    done = execute(settings, tmp_path / "run")
    assert done.outcomes and not any(one.failure for one in done.outcomes)
    with pytest.raises(InputError, match="nothing"):
        execute(
            from_dict({"model": str(tiny_folder), "limit": 1, name: value.replace(METHODS[kind], "nothing")}),
            tmp_path / "no",
        )
