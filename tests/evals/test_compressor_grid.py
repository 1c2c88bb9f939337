"""The grid of compressors: settings that keep what is asked for, work that is shared, lines that can be compared."""

import json
from dataclasses import replace

import pytest
import torch

from onlooker import models
from onlooker.cli import main
from onlooker.compress.dtd import DTD
from onlooker.compress.vidcom2 import VidCom2
from onlooker.core.errors import InputError
from onlooker.core.tokens import VisualTokens
from onlooker.evals import budgets, compressors, grid, lines, sharing
from onlooker.evals.run_settings import from_dict, load_items
from onlooker.evals.runs import execute


def clips(count=2, frames=12, dim=24):
    """Clips of 16 tokens a frame, of which a quarter is new in each."""
    made = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        ground, clip = torch.randn(16, dim, generator=made), []
        for number in range(frames):
            new = torch.rand(16, 1, generator=made) < 0.25
            ground = torch.where(new, torch.randn(16, dim, generator=made), ground)
            features = ground + 0.3 * torch.randn(16, dim, generator=made)
            extras = {"saliency": torch.rand(16, generator=made)}
            clip.append(VisualTokens.of_frame(features, (4, 4), number, float(number), extras))
        found.append(clip)
    return found


def test_what_is_kept_is_counted_to_the_last_frame():
    """The last window is not full: it counts when the clip ends."""
    assert budgets.kept(DTD(threshold=-1.0), clips()) == pytest.approx(1 / 12)
    assert budgets.kept(VidCom2(keep_ratio=1.0, frames=5), clips()) > 10 / 12


@pytest.mark.parametrize("name", ["dtd", "evs", "fastvid", "sttm", "dtd at a rate", "vcast"])
def test_the_setting_that_is_found_keeps_what_was_asked_for(name):
    """Thresholds and ratios alike, measured on the clips it was looked for on."""
    (knob,) = [one for one in budgets.knobs() if one.name == name]
    (found,) = budgets.settings(knob, [0.4], models.load("pocket-naive"), clips())
    assert found.fits and abs(found.measured - 0.4) < 0.06, found


def test_what_was_measured_for_one_share_helps_the_next(monkeypatch):
    """Several shares of one method: each is met as if it were alone, with fewer looks at the clips."""
    (knob,) = [one for one in budgets.knobs() if one.name == "dtd"]
    shares, model, looks = [0.2, 0.3, 0.4, 0.6], models.load("pocket-naive"), []
    kept = budgets.kept
    monkeypatch.setattr(budgets, "kept", lambda *given: looks.append(given) or kept(*given))
    alone = [budgets.settings(knob, [share], model, clips())[0] for share in shares]
    num_alone = len(looks)
    looks.clear()
    together = budgets.settings(knob, shares, model, clips())
    assert len(looks) < num_alone
    for share, found, other in zip(shares, together, alone, strict=True):
        assert found.share == share and found.fits == other.fits
        assert abs(found.measured - share) <= max(abs(other.measured - share), budgets.CLOSE * share)


def test_what_cannot_be_had_is_said():
    """DyCoke keeps one frame in four whole, whatever its ratio."""
    (knob,) = [one for one in budgets.knobs() if one.name == "dycoke"]
    (found,) = budgets.settings(knob, [0.05], models.load("pocket-naive"), clips())
    assert not found.fits and found.measured > 0.25


def test_every_compressor_has_a_knob_or_a_reason():
    """A new method is in the grid without being named."""
    names = {one.name for one in budgets.knobs()}
    assert {"stc_pruner", "tome", "visionzip", "flashvid", "dtd anchored", "dtd pixels"} <= names


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (3, (1, 3)), (6, (2, 3)), (16, (4, 4)), (32, (4, 8))])
def test_a_coarser_picture_has_as_many_tokens(count, grid):
    down, across = compressors.coarse(8, 8, count)
    assert down * across == count and sorted((down, across)) == sorted(grid)


def test_names_can_be_taken_apart():
    assert compressors.named(compressors.label("dtd pixels", 0.05)) == ("dtd pixels", 0.05)
    assert compressors.named("all tokens") == ("all tokens", None)


def test_some_shares_only():
    """In percent, as tables say it; another grid is another grid."""
    assert compressors.shares_of("compressors") == compressors.SHARES
    assert compressors.shares_of("compressors:5,15") == (0.05, 0.15)
    assert compressors.shares_of("stc") is None
    for wrong in ("compressors:", "compressors:half", "compressors:0", "compressors:120"):
        with pytest.raises(InputError, match="percents"):
            compressors.shares_of(wrong)


def test_refiners_are_compared_at_one_budget():
    """A quarter each, but for all tokens; their runs share the tower."""
    runs = grid.expand("refiners", {"suite": "pocketworld", "model": "pocket-naive"})
    said = {run.label: f"{run.refiner} {run.compressor} fps={run.fps}" for run in runs}
    assert {"fastv", "prunevid2", "b_vllm", "tifre", "iva", "ppllava, fixed", "fewer frames"} <= said.keys()
    quarter = ("ratio=0.25", "keep=16", "frames=1,side=2", "fine=4,coarse=8", "fps=0.25")
    assert all(any(word in text for word in quarter) for name, text in said.items() if name != "all tokens")
    assert {run.encoder for run in runs} == {"full"} and "refiners" in grid.SHARED


def settings(**more):
    values = {"suite": "pocketworld", "limit": 8, "model": "pocket-naive", "encoder": "full", "memory": "full"}
    return from_dict(values | {"compressor": "adts:keep=16", "device": "cpu"} | more)


def test_shared_work_changes_no_answer(tmp_path):
    """Frames from the file, their tower outputs and what they show: the same answers as without, to the letter."""
    one = settings()
    (tmp_path / "shared").mkdir()
    for number in range(len(load_items(one).items)):
        sharing.prepare(one, tmp_path / "shared", number)
    for name, run in (("adts", one), ("oracle", replace(one, compressor="oracle:keep=6"))):
        plain = execute(run, tmp_path / f"plain-{name}", check_videos=0)
        shared = execute(run, tmp_path / f"shared-{name}", check_videos=0, shared=tmp_path / "shared")
        said = [[[r.text for r in o.replies] for o in done.outcomes] for done in (plain, shared)]
        assert said[0] == said[1]
        assert [v["stats"]["tokens_kept"] for v in plain.videos] == [v["stats"]["tokens_kept"] for v in shared.videos]


@pytest.mark.slow
def test_the_grid_from_the_command_line(tmp_path, monkeypatch, capsys):
    """One share, two methods: budgets, runs, a line for each; what does not fit is said."""
    found = [one for one in budgets.knobs() if one.name in ("stc_pruner", "dycoke")]
    monkeypatch.setattr(compressors, "CLIPS", 1)
    monkeypatch.setattr(compressors, "knobs", lambda: found)
    where = ["--out", str(tmp_path / "runs"), "--lines", str(tmp_path / "rows.jsonl"), "--device", "cpu"]
    asked = ["eval", "pocketworld", "--limit", "6", "--model", "pocket-naive", "--grid", "compressors:10", "--json"]
    with pytest.raises(SystemExit) as ended:
        main([*asked, *where])
    said = capsys.readouterr()
    assert ended.value.code == 0 and "dycoke is left out at 10%" in said.err
    about, runs = lines.read(tmp_path / "rows.jsonl")
    assert len(about["ids"]) == 6 and len(json.loads(said.out)) == len(runs) == 11
    for row in runs:
        name, share = compressors.named(row["name"])
        assert len(row["worth"]) == 6 and row["lane"] == "causal" and row["commit"]
        if share is not None:
            kept = row["kept_a_second"] / runs[0]["seen_a_second"]
            assert abs(kept - share) <= 0.3 * share, (name, kept)
    with pytest.raises(SystemExit) as ended:
        main([*asked, *where])
    assert ended.value.code == 0 and json.loads(capsys.readouterr().out) == []
    assert len(lines.read(tmp_path / "rows.jsonl")[1]) == 11


def test_runs_that_have_a_line_are_not_done_again(tmp_path):
    """Whatever the device; other settings, and files of other questions, are told apart."""
    path, (one, two, other) = tmp_path / "rows.jsonl", (settings(), settings(fps=0.5), settings(limit=4))
    assert lines.start(path, [one, two]) == [one, two]
    run = execute(one, tmp_path / "one", check_videos=0)
    lines.add(path, run)
    assert lines.start(path, [replace(one, device="cuda:0"), two, other]) == [two, other]
    with pytest.raises(InputError, match="other questions"):
        lines.add(path, execute(other, tmp_path / "other", check_videos=0))
    (tmp_path / "notes.txt").write_text("by hand")
    with pytest.raises(InputError, match=r"no lines of runs|cannot be read"):
        lines.start(tmp_path / "notes.txt", [one])
