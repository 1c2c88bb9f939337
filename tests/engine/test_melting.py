"""Memories that melt, from pictures to answers, on every family: bounds, packed passes, streams together, saving."""

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.core.errors import InputError
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.models import load

MEMORIES = ("infinipot_v:window_tokens=24,keep_tokens=14", "quickprefill:group=4,keep_ratio=0.5")
FRAMES = 24


@pytest.fixture(
    scope="module",
    params=[(family, pairs) for family in FAMILIES for pairs in (False, True) if not pairs or "qwen" in family],
)
def model(request, tmp_path_factory):
    family, pairs = request.param
    return load(make_family_folder(family, tmp_path_factory.mktemp(family)), device="cpu", pairs=pairs)


def make_engine(model, memory: str, passes: str = "plain") -> Engine:
    return Engine(model, encoder="full", compressor="stc_pruner:keep=3", memory=memory, passes=passes)


def watch(session, frames, first: int = 0) -> None:
    for second, frame in enumerate(frames, start=first):
        session.push(Frame(frame.image, float(second)))


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_window_is_bounded_and_answers_cite_what_is_left(model, memory):
    session = make_engine(model, memory).open()
    clip = make_frames(FRAMES, seed=3)
    for second, frame in enumerate(clip):
        session.push(Frame(frame.image, float(second)))
        rows = session.store._window.num_rows - session.store._window.prefix.num_tokens
        assert rows <= 24 if "infinipot" in memory else rows <= session.stats().tokens_read
    assert session.store._window.melted, "it melted"
    assert session.stats().memory_bytes["device_owners"] > 0
    answer = session.ask("what is happening in the video ?", max_new_tokens=3)
    starts, ends = ({getattr(span, name) for span in session.store.spans} for name in ("start_s", "end_s"))
    assert answer.citations and all(
        one.start_s in starts and one.end_s in ends | {FRAMES - 1.0} for one in answer.citations
    )
    late = session.ask("what is happening in the video ?", since=FRAMES - 8.0, max_new_tokens=3)
    assert all(one.start_s >= FRAMES - 8.0 for one in late.citations)


@pytest.mark.parametrize("memory", MEMORIES)
def test_packed_equals_plain_and_together_equals_apart(model, memory):
    clips = [make_frames(FRAMES, seed=seed) for seed in (1, 2)]
    found = []
    for passes in ("plain", "packed"):
        engine = make_engine(model, memory, passes)
        sessions = [engine.open() for _ in clips]
        for second in range(FRAMES):
            engine.step(
                [(s, Frame(clip[second].image, float(second))) for s, clip in zip(sessions, clips, strict=True)]
            )
        found.append(
            [(s.store._window.tensors(), s.ask("which shape left first ?", max_new_tokens=3).text) for s in sessions]
        )
    for (plain, said), (packed, heard) in zip(*found, strict=True):
        assert said == heard
        for one, other in zip(plain, packed, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    engine = make_engine(model, memory)
    for clip, ((keys, _), said) in zip(clips, found[0], strict=True):
        alone = engine.open()
        watch(alone, clip)
        torch.testing.assert_close(alone.store._window.tensors()[0], keys, rtol=1e-3, atol=1e-4)
        assert alone.ask("which shape left first ?", max_new_tokens=3).text == said


@pytest.mark.parametrize("memory", MEMORIES)
def test_saved_and_loaded_it_goes_on_to_the_bit(model, memory):
    engine = make_engine(model, memory)
    session, clip = engine.open(), make_frames(FRAMES, seed=5)
    watch(session, clip[:16])
    loaded = engine.load(session.export())
    for one in (session, loaded):
        watch(one, clip[16:], first=16)
    for a, b in zip(session.store._window.tensors(), loaded.store._window.tensors(), strict=True):
        assert torch.equal(a, b)
    assert session.ask("which shape left first ?").text == loaded.ask("which shape left first ?").text


def test_a_memory_that_picks_nonsense_loses_only_the_frame(tiny_model, monkeypatch):
    engine = make_engine(tiny_model, MEMORIES[0])
    session, clip = engine.open(), make_frames(FRAMES, seed=6)
    other = engine.open()
    kind, taken = type(engine.memory), []
    right = kind.pick
    monkeypatch.setattr(kind, "pick", lambda self, keys, values, sizes, state: torch.zeros(1, dtype=torch.int64))
    for second, frame in enumerate(clip):
        events = engine.step([(session, Frame(frame.image, float(second)))])
        taken += [type(event).__name__ for event in events]
        if taken[-1] == "Failed":
            break
    assert taken[-1] == "Failed"
    rows = session.store._window.num_rows
    monkeypatch.setattr(kind, "pick", right)
    watch(other, clip[: len(taken) - 1])
    assert other.store._window.num_rows == rows, "the frame was never there"
    watch(session, clip[len(taken) :], first=len(taken))
    assert session.store._window.melted


def test_settings_that_do_not_fit_are_refused(tiny_model):
    for text in ("window_tokens=10,keep_tokens=10", "keep_tokens=0", "recent=2", "tar_share=-1"):
        with pytest.raises(InputError):
            Engine(tiny_model, memory=f"infinipot_v:{text}")


@pytest.mark.proves("quickvideo", 2)
def test_quickprefill_that_keeps_all_equals_full(model):
    clip, found = make_frames(FRAMES, seed=4), []
    for memory in ("full", "quickprefill:keep_ratio=1,group=4"):
        session = make_engine(model, memory).open()
        watch(session, clip)
        found.append((session.store._window.tensors(), session.ask("which shape left first ?", max_new_tokens=4).text))
    (whole, said), (kept, heard) = found
    assert said == heard and all(torch.equal(a, b) for a, b in zip(whole, kept, strict=True))


def test_quickprefill_keeps_the_smallest_keys_of_each_group(tiny_model):
    """Against the rule written down, over the keys of a memory that keeps everything up to the first melting."""
    full, thin = (make_engine(tiny_model, memory).open() for memory in ("full", "quickprefill:group=4"))
    clip = make_frames(4, seed=4)
    for session in (full, thin):
        watch(session, clip)
    lead = full.store._window.prefix.num_tokens
    keys, got = (session.store._window.tensors()[0][:, :, lead:] for session in (full, thin))
    for layer in range(len(keys)):
        norms = [sum(float((row[n] ** 2).sum()) for row in keys[layer]) for n in range(keys.shape[2])]
        kept = sorted(sorted(range(len(norms)), key=norms.__getitem__)[: round(len(norms) * 0.5)])
        torch.testing.assert_close(got[layer], keys[layer, :, kept], rtol=0, atol=0)
