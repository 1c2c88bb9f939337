"""A run is a folder: never overwritten, resumable, and the same in every run with the same seed."""

import json

import pytest
from scripted_items import many

from onlooker.core.errors import InputError
from onlooker.evals import runs, suites, workers
from onlooker.evals.compare import budget, compare
from onlooker.evals.grid import BUILT_IN, expand
from onlooker.evals.item import Reading, Rejected
from onlooker.evals.report.table import markdown
from onlooker.evals.run_settings import RunSettings, from_dict
from onlooker.evals.runs import execute, folder_of, open_run
from onlooker.evals.score import score


@pytest.fixture(autouse=True)
def small_suite(monkeypatch):
    """The made-up items in the place of a suite's, so that no picture has to be drawn."""
    reading = Reading(tuple(many(6)), (Rejected("row 7", "the video is missing", 2),))
    monkeypatch.setattr(runs, "load_items", lambda settings: reading)


def settings(**more):
    return RunSettings(control=more.pop("control", "oracle:0.1"), limit=30, parallel=2, **more)


def answers(run):
    return {outcome.query.id: [reply.text for reply in outcome.replies] for outcome in run.outcomes}


def test_a_run_leaves_everything_behind(tmp_path):
    run = execute(settings(), tmp_path / "run")
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "settings.json",
        "environment.json",
        "answers.jsonl",
        "videos.jsonl",
        "rejected.jsonl",
        "done.json",
    }
    assert {"commit", "packages", "python", "seed", "command", "cpus"} <= set(run.environment)
    assert score(run.outcomes).accuracy == 0.9 and run.rejected == 2 and run.done["questions"] == 32
    assert score(run.outcomes, rejected=run.rejected).coverage == 30 / 32
    assert run.settings == settings() and len(run.videos) == 6


def test_a_finished_run_is_never_overwritten(tmp_path):
    execute(settings(), tmp_path / "run")
    with pytest.raises(InputError, match="never overwritten"):
        execute(settings(), tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(InputError, match="never written to"):
        execute(settings(), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, tiny_folder):
    small = {"model": str(tiny_folder), "device": "cpu", "compressor": "identity", "control": "text_only"}
    whole = execute(settings(**small), tmp_path / "whole")

    class Interrupted(BaseException):
        pass

    seen = []

    def stop(outcome):
        seen.append(outcome)
        if len(seen) == 13:
            raise Interrupted

    with pytest.raises(Interrupted):
        execute(settings(**small), tmp_path / "part", on_outcome=stop)
    done = len((tmp_path / "part" / "videos.jsonl").read_text().splitlines())
    assert 0 < done < 6
    with (tmp_path / "part" / "answers.jsonl").open("a") as file:
        file.write('{"query": {"id": "half a li')
    with pytest.raises(InputError, match="other settings"):
        execute(settings(**small | {"seed": 1}), tmp_path / "part")
    again = []
    run = execute(settings(**small), tmp_path / "part", on_outcome=again.append)
    assert len(again) == 30 - 5 * done and run.done["resumed"]
    assert answers(run) == answers(whole) and len(run.outcomes) == 30


def test_the_same_seed_gives_the_same_answers(tmp_path, tiny_folder):
    chosen = settings(
        control="", model=str(tiny_folder), device="cpu", encoder="full", compressor="random:keep=2", memory="full"
    )
    first, second = (execute(chosen, tmp_path / name) for name in ("a", "b"))
    assert answers(first) == answers(second) and first.lane == "causal"
    took = budget(first)
    assert took.tokens_per_second > 2 and took.most_tokens_per_second == pytest.approx(took.tokens_per_second)
    assert took.vision_gflop_per_second > 0 and took.most_bytes > 1000


def test_a_peeking_run_stands_in_a_lane_of_its_own(tmp_path, tiny_folder):
    chosen = settings(
        control="peek:4", model=str(tiny_folder), device="cpu", encoder="full", compressor="identity", memory="full"
    )
    run = execute(chosen, tmp_path / "run", check_videos=2)
    assert run.lane == "looks ahead" and run.done["violations"]
    honest = execute(settings(control="yes"), tmp_path / "honest")
    rows = compare([run, honest])
    assert [row.run.lane for row in rows] == ["causal", "looks ahead"]


def test_a_model_that_does_not_load_leaves_no_folder(tmp_path):
    with pytest.raises(Exception, match="nowhere"):
        execute(settings(control="", model="nowhere/"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_grid_is_a_product_of_lists_or_a_file(tmp_path):
    found = expand("compressor=uniform|random:seed=1; memory=full | rekv", {"suite": "pocketworld"})
    assert [(one.compressor, one.memory) for one in found][1] == ("uniform", "rekv") and len(found) == 4
    path = tmp_path / "grid.toml"
    path.write_text('[base]\nmemory="full"\n[axes]\nfps=[1.0, 0.5]\n[[run]]\ncontrol="yes"\nname="always yes"\n')
    found = expand(str(path), {"limit": 7})
    assert [one.fps for one in found] == [1.0, 0.5, 1.0] and found[2].label == "always yes"
    assert {one.memory for one in found} == {"full"} and {one.limit for one in found} == {7}
    for name in BUILT_IN:
        assert len({one.key for one in expand(name, {})}) == len(BUILT_IN[name])


@pytest.mark.parametrize(
    ("spec", "message"),
    [("colour=red", "no such setting"), ("compressor=stc_pruned", "did you mean"), ("nonsense", "no grid"),
     ("seed=1|1", "are the same"), ("missing.toml", "cannot be read"), ("fps=0", "fps must"), (";", "empty")],
)  # fmt: skip
def test_bad_grids_say_what_is_wrong(spec, message):
    with pytest.raises(InputError, match=message):
        expand(spec, {})


def test_an_empty_grid_file_is_not_a_run_of_the_defaults(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text("# nothing yet\n")
    with pytest.raises(InputError, match="empty"):
        expand(str(path), {"suite": "pocketworld"})


def test_a_grid_runs_and_goes_on_and_one_failure_stops_nothing(tmp_path):
    grid = [settings(), settings(control="yes"), settings(control="", model="nowhere/")]
    told = []
    finished = workers.run_grid(grid, tmp_path, on_progress=told.append)
    assert [bool(one.failure) for one in finished] == [False, False, True] and max(told) == 60
    stamp = (finished[0].folder / "done.json").stat().st_mtime_ns
    again = workers.run_grid(grid, tmp_path)
    assert (again[0].folder / "done.json").stat().st_mtime_ns == stamp
    rows = compare(workers.results(finished))
    text = markdown(rows, tmp_path)
    assert f"({folder_of(grid[0], tmp_path).name})" in text and "worse (-30.0" in text


def test_names_of_folders_do_not_clash_and_devices_do_not_count():
    from pathlib import Path

    one, other = settings(), settings(seed=3)
    assert folder_of(one, Path()) != folder_of(other, Path())
    assert settings(device="cuda:1").key == settings(device="cpu").key
    assert from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_without_ray_the_message_says_so(tmp_path):
    try:
        import ray  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="Ray is not installed"):
            workers.run_grid([settings()], tmp_path, ray=True)
    else:
        (one,) = workers.run_grid([settings()], tmp_path, ray=True)
        assert not one.failure


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        open_run(tmp_path)
    assert suites.names() == [
        "pocketworld", "pocketworld_chains", "pocketworld_gaze", "pocketworld_long", "pocketworld_needles",
        "pocketworld_stories", "pocketworld_stream", "pocketworld_temporal", "pocketworld_transport",
    ]  # fmt: skip
