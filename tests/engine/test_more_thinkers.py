"""Thinkers on streams: differential captions at key frames, sentences and words beside the frames."""

import pytest
import torch
from moving_pictures import make_frames

from onlooker.core.frame import Frame
from onlooker.engine import Engine


def engine_of(model, think: str, compressor: str = "identity") -> Engine:
    return Engine(model, encoder="full", compressor=compressor, memory="full", think=think)


def watched(engine: Engine, frames):
    session, means = engine.open(), []
    for frame in frames:
        session.push(frame)
        means.append(None if session.carriers is None else session.carriers.float().mean(0))
    return session, means


def key_frames(means, every: int, alike: float) -> list[int]:
    """By a plain loop: compared every so often with the last key frame."""
    found, last = [], None
    for number in range(0, len(means), every):
        if last is None or float(torch.cosine_similarity(means[number], last, dim=0)) < alike:
            found.append(number)
            last = means[number]
    return found


@pytest.mark.proves("sharegpt4video", 1)
@pytest.mark.parametrize(("every", "alike"), [(1, 0.97), (2, 0.93), (2, 0.999)])
def test_key_frames_are_those_of_a_plain_derivation(tiny_model, every, alike):
    engine = engine_of(tiny_model, f"delta_notes:every_s={every},alike={alike},longest=3,summarise=0")
    session, means = watched(engine, make_frames(24))
    wanted = key_frames(means, every, alike)
    assert [int(note.time_s) for note in session.notes()] == wanted
    assert session.stats().thoughts == len(wanted) and wanted[0] == 0


def test_each_caption_is_told_the_one_before_and_summaries_come_between(tiny_model, monkeypatch):
    asked = []
    engine = engine_of(tiny_model, "delta_notes:every_s=1,alike=0.99999,longest=3,summarise=3")
    plain = type(engine.serving.thinker).think

    def spying(self, moment, notes, state):
        thought = plain(self, moment, notes, state)
        if thought is not None:
            asked.append((moment.time_s, thought.prompt, thought.longest))
        return thought

    monkeypatch.setattr(type(engine.serving.thinker), "think", spying)
    moving = make_frames(6)
    frames = moving + [Frame(moving[-1].image, float(at)) for at in range(6, 10)]
    session, _ = watched(engine, frames)
    notes = [note.text for note in session.notes()]
    captions = [one for one in asked if one[2] == 3]
    assert captions[0][1] == "Describe what is there now."
    for (_, prompt, _), before in zip(captions[1:], notes, strict=False):
        assert prompt == f"Before: {before}\nWhat has changed since then?"
    summaries = [one for one in asked if one[2] == 6]
    assert len(summaries) == 1 and summaries[0][1].endswith("\nSum it up.") and notes[0] in summaries[0][1]


@pytest.mark.parametrize("think", ["tays:every_s=2,longest=4", "speak_while_watching:longest=2"])
def test_frames_never_see_what_is_said_and_questions_do(tiny_model, think):
    """Bit for bit the same memory as without, and another prompt for questions."""
    frames = make_frames(9)
    plain, _ = watched(engine_of(tiny_model, "none"), frames)
    session, _ = watched(engine_of(tiny_model, think), frames)
    for name, tensor in plain.store.export()[0].items():
        torch.testing.assert_close(session.store.export()[0][name], tensor, rtol=0, atol=0)
    assert len(session.notes()) >= 3
    asked = [one.ask("what is happening in the video ?", max_new_tokens=3) for one in (plain, session)]
    assert asked[1].usage.context_tokens > asked[0].usage.context_tokens or (
        asked[1].usage.prompt_tokens > asked[0].usage.prompt_tokens
    )


def test_it_goes_on_after_a_save_and_in_a_fork(tiny_model):
    engine = engine_of(tiny_model, "delta_notes:every_s=1,alike=0.99999,longest=3,summarise=4")
    frames = make_frames(20)
    session, _ = watched(engine, frames[:9])
    twin, loaded = session.fork(), engine.load(session.export())
    for one in (session, twin, loaded):
        for frame in frames[9:]:
            one.push(frame)
    assert twin.notes() == loaded.notes() == session.notes() and len(session.notes()) > 2
