"""The gates of Pocket World's levels on a small sample, and that a shut gate is seen."""

import dataclasses
import random

import pytest

from benchmarks import world_gates
from onlooker.core.errors import InputError
from onlooker.evals import suites
from onlooker.evals.blind import blind_tables, guesses, last_frame_share
from onlooker.evals.suites import pocketworld
from onlooker.world import LEVEL_TASKS, LEVELS, make_episode


@pytest.fixture(scope="module")
def asked():
    return world_gates.questions("L2", 800)


@pytest.mark.parametrize("level", ["L2", "L3"])
def test_the_gates_that_need_no_model_are_open(level):
    rows = list(world_gates.of_the_world(level, 640))
    assert [row for row in rows if not row["open"]] == []
    assert len(rows) == 7


def test_a_clock_that_tells_is_caught():
    """A yes that comes late is what the audit found in L0: "yes after 11.5 seconds" was right in 70 %."""
    episodes = (make_episode(n, "validation", LEVELS["L2"].duration_s, level="L2") for n in range(80))
    told = []
    for query in (query for episode in episodes for query in episode.questions(1, 0, tasks=("proactive",))):
        (point,) = query.test_points
        late = point["t"] - query.ask_time > 5
        told.append(
            dataclasses.replace(query, test_points=({"t": point["t"], "expect": "yes" if late else "no"},))
        )  # fmt: skip
    gains = {table.name: table.gain for table in blind_tables(guesses(told))}
    assert gains["time since asking"] > 0.1
    assert gains["time asked"] < 0.1


def test_a_wording_that_tells_is_caught(asked):
    rng = random.Random(0)
    told = []
    for query in asked:
        if query.task == "ever":
            answer = "yes" if query.question.startswith("have") else rng.choice(("yes", "no"))
            query = dataclasses.replace(query, answer=answer)
        told.append(query)
    marks = [mark for mark in guesses(told) if mark.form == "ever_thing"]
    gains = {table.name: table.gain for table in blind_tables(marks)}
    assert gains["first words"] > 0.05


def test_naming_the_right_one_first_is_caught(asked):
    rows = [q for q in asked if q.meta["form"] in ("first_of_two", "faster")]
    told = [dataclasses.replace(q, options=(q.answer, next(o for o in q.options if o != q.answer))) for q in rows]
    constants = [table.constant for table in blind_tables(guesses(told))]
    assert min(constants) > 0.95, "always saying the first option is a constant, and it is seen"
    assert max(table.constant for table in blind_tables(guesses(rows))) < 0.75


def test_l0_is_known_to_be_told_by_the_last_frame():
    old = [query for item in pocketworld.items(160, split="validation") for query in item.queries]
    assert last_frame_share(old) > 0.4


def test_levels_of_the_suite(asked):
    items = list(suites.items("pocketworld", 40, level="L2"))
    queries = [query for item in items for query in item.queries]
    assert len(queries) == 40
    assert {query.benchmark for query in queries} == {"pocketworld_L2"}
    assert {query.task for query in queries} <= set(LEVEL_TASKS)
    assert {item.video.duration for item in items} == {LEVELS["L2"].duration_s}
    assert not {query.id for query in queries} & {query.id for query in asked}, "validation and test never meet"
    with pytest.raises(InputError, match="no such level"):
        list(suites.items("pocketworld", 3, level="L7"))
    with pytest.raises(InputError, match="has no levels"):
        list(suites.items("pocketworld-long", 3, level="L2"))


def test_the_command_prints_every_gate_and_its_exit_code_is_theirs(capsys, monkeypatch, tmp_path):
    assert world_gates.main(["--levels", "L2", "--blind-limit", "240", "--out", str(tmp_path / "gates.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("open  L2") == 7
    assert len((tmp_path / "gates.jsonl").read_text().splitlines()) == 7
    monkeypatch.setattr(world_gates, "LAST_SHARE", 0.01)
    assert world_gates.main(["--levels", "L2", "--blind-limit", "80"]) == 1
    assert "SHUT  L2" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gates_of_a_model_are_measured_through_the_engine():
    """On a small sample: the recommended model of the levels leaves every gate open."""
    rows = list(world_gates.of_a_model("L2", 48, "pocket-stc", 6))
    assert [row["gate"] for row in rows] == ["dense", "last frame", "dense minus oracle", "dense minus random"]
    assert all(row["low"] <= row["value"] + 1e-4 and row["value"] <= row["high"] + 1e-4 for row in rows)
    assert [row for row in rows if not row["open"]] == []


@pytest.mark.parametrize(("level", "given", "used"), [
    ("L0", [], "pocket-aware"), ("L2", [], "pocket-stc"), ("L2", ["--model", "pocket-naive"], "pocket-naive"),
])  # fmt: skip
def test_a_level_is_put_to_a_model_that_learnt_it(level, given, used, monkeypatch):
    from typer.testing import CliRunner

    from onlooker.cli import evaluate
    from onlooker.cli.app import app

    seen = []
    monkeypatch.setattr(evaluate, "_one", lambda settings, *_: seen.append(settings))
    result = CliRunner().invoke(app, ["eval", "pocketworld", "--level", level, "--limit", "8", *given])
    assert result.exit_code == 0, result.output
    assert [(one.level, one.model) for one in seen] == [(level, used)]
