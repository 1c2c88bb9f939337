"""An engine as a server runs it: steps are made at start where the model makes one size of every picture."""

import logging

import torch
from moving_pictures import make_frames
from tiny import make_qwen_folder

from onlooker.core.errors import ModelError
from onlooker.engine import SLO, Engine, ready
from onlooker.models import load


def test_steps_are_made_for_what_a_scheduler_takes_at_once(tiny_model):
    engine, plain = ready(lambda: Engine(tiny_model), SLO(most_frames=3)), Engine(tiny_model)
    sessions, others = ([one.open() for _ in range(3)] for one in (engine, plain))
    for frames in zip(*(make_frames(4, seed=number) for number in range(3)), strict=True):
        for one, streams in ((engine, sessions), (plain, others)):
            one.step(list(zip(streams, frames, strict=True)))
    assert all(session.stats().frames_unprepared == 0 for session in sessions)
    assert not engine.open().stats().frames, "what was shown to find the sizes left no mark"
    for session, other in zip(sessions, others, strict=True):
        mine, theirs = session.export().tensors, other.export().tensors
        # Plain steps on a CPU keep references with their shifts added, prepared ones beside them: what either gives
        # shows in the keys and values of the frames after.
        kept = [name for name in theirs if not name.startswith("encoder/")]
        assert any("keys" in name for name in kept)
        for name in kept:
            torch.testing.assert_close(
                mine[name].float(),
                theirs[name].float(),
                atol=1e-4,
                rtol=0,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def test_a_model_of_any_size_runs_as_it_is(tmp_path):
    model, made = load(make_qwen_folder(tmp_path, "qwen2_5_vl"), device="cpu"), []
    engine = ready(lambda: made.append(1) or Engine(model), SLO())
    assert made == [1] and engine.open().stats().frames_unprepared == 0


def test_methods_without_such_steps_run_as_they_are_and_the_log_tells(tiny_model, monkeypatch, caplog):
    made = []

    def make() -> Engine:
        made.append(Engine(tiny_model))
        return made[-1]

    def refuse(engine, **_):
        raise ModelError("this method has no steps", given="a test", do="nothing")

    monkeypatch.setattr(Engine, "prepare", refuse)
    with caplog.at_level(logging.WARNING):
        assert ready(make, SLO()) is made[1] and len(made) == 2
    assert "this method has no steps" in caplog.text
