"""A second tower whose tokens follow those of the frame (VideoGPT+), beside the tower of each family; and towers that a
prepared engine has no steps for, which are counted."""

import copy

import pytest
import torch
from moving_pictures import make_frames
from side_towers import DIM, SIDE, Motion, weight
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.core.errors import CapacityError
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.models import load

QUESTION = "what is happening in the video ?"
ROWS = 2


class MotionTokens(Motion):
    """Two rows of tokens that say how the picture has changed; the model's own tower is left alone."""

    name, offers = "motion_tokens", frozenset()

    def __init__(self, width: int, hidden_dim: int) -> None:
        super().__init__(width)
        self._to = weight(DIM, hidden_dim, 3)

    def fuse(self, encoded, own, tower):
        return encoded

    def beside(self, own, grid):
        return own.hidden[:, : ROWS * grid[1]] @ self._to


@pytest.fixture(scope="module", params=FAMILIES)
def own(request, tmp_path_factory):
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu", pairs=False)


@pytest.fixture(scope="module")
def model(own):
    twin = copy.copy(own)
    pixels = torch.cat(own.preprocess([make_frames(1)[0].image]))
    twin.attach_tower(MotionTokens(own.tower(tuple(pixels.shape)).dim, own.spec.hidden_dim))
    return twin


def engine_of(model, memory="full", compressor="identity", passes="plain", **more) -> Engine:
    return Engine(
        model, encoder=more.pop("encoder", "full"), compressor=compressor, memory=memory, passes=passes, **more
    )


def watched(engine, frames, **how):
    session = engine.open(**how)
    for frame in frames:
        session.push(frame)
    return session


def test_its_tokens_follow_those_of_the_frame(model, own, monkeypatch):
    frames, read = make_frames(4), {}
    for name, one in (("both", model), ("own", own)):
        engine = engine_of(one)
        session, run, works = engine.open(), engine.passes.run, []
        monkeypatch.setattr(engine.passes, "run", lambda given, run=run, works=works: works.extend(given) or run(given))
        for frame in frames:
            session.push(frame)
        read[name] = works, session
    both, alone = read["both"], read["own"]
    patches = alone[1].stats().tokens_seen // 4
    added = ROWS * int(patches**0.5)
    assert both[1].stats().tokens_seen == both[1].stats().tokens_kept == 4 * (patches + added)
    for longer, shorter in zip(both[0], alone[0], strict=True):
        assert len(longer.embeddings) == len(shorter.embeddings) + added
        for name, rows in (shorter.extras or {}).items():
            found = longer.extras[name]
            kept = found.flatten(1).abs().sum(1) > 0
            assert int(kept.sum()) == int((rows.flatten(1).abs().sum(1) > 0).sum()), "nothing enters beside its tokens"
    # What stands for the picture is what it was; only behind it something is new.
    longer, shorter = both[0][0].embeddings, alone[0][0].embeddings
    alike = [any(torch.equal(row, other) for other in shorter) for row in longer]
    assert sum(alike) == len(shorter) and len(alike) - sum(alike) == added
    assert alike[: alike.index(False)] == [True] * alike.index(False) and alike.index(False) >= patches
    # It has a memory of its own: after another past the same frame has other tokens there.
    other = watched(engine_of(model), [*make_frames(3, seed=9), frames[3]])
    keys = [one.store.raw_keys(one.store.spans[-1].id) for one in (both[1], other)]
    assert not torch.allclose(*keys)


@pytest.mark.parametrize("memory", ["full", "rekv:topk=2,recent=1,window_tokens=30", "last_frames:frames=4"])
@pytest.mark.parametrize("compressor", ["stc_pruner:keep=3", "dtd", "uniform:keep=4"])
def test_it_is_compressed_and_packed_with_the_frame(model, memory, compressor):
    clips, told = [make_frames(6, seed=seed) for seed in (0, 5)], []
    for passes in ("plain", "packed"):
        engine = engine_of(model, memory, compressor, passes, encoder="stc_cacher")
        together, alone = [engine.open(), engine.open()], engine.open()
        for pair in zip(*clips, strict=True):
            engine.step(list(zip(together, pair, strict=True)))
        for frame in clips[1]:
            alone.push(frame)
        told.append([session.ask(QUESTION, max_new_tokens=4).text for session in (*together, alone)])
        assert told[-1][1] == told[-1][2]
        assert together[1].stats().tokens_kept == alone.stats().tokens_kept < alone.stats().tokens_seen
    assert told[0] == told[1]


def test_it_is_forked_saved_and_loaded(model):
    engine, frames = engine_of(model, "sliding_window:window_tokens=80"), make_frames(7)
    session = watched(engine, frames[:4])
    rest = [session.fork(), engine.load(session.export())]
    for one in (session, *rest):
        for frame in frames[4:]:
            one.push(frame)
    wanted = session.store.export()[0]
    for one in rest:
        for name, tensor in one.store.export()[0].items():
            torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)


def test_a_frame_that_does_not_fit_with_them_is_refused_and_leaves_no_trace(model):
    frames, whole = make_frames(4), watched(engine_of(model), make_frames(4))
    sizes = whole.store.num_bytes()
    held = sum(size for name, size in sizes.items() if name.startswith("device") and name != "device_views")
    session, refused = engine_of(model, device_budget_bytes=int(held * 0.6)).open(), 0
    for frame in frames:
        try:
            session.push(frame)
        except CapacityError:
            refused += 1
    assert 0 < refused < 4 and session.frames == 4 - refused == len(session.states["motion_tokens"].before)


def test_the_picture_is_drawn_without_them(model, own):
    drawn = [watched(engine_of(one), make_frames(2), trace=True).trace.kept for one in (model, own)]
    assert drawn[0].shape == drawn[1].shape


def test_a_prepared_engine_gives_the_same_and_counts_what_it_has_no_step_for(model, own):
    """The second tower has no packed form: it runs as it is, which is told when steps are made, and counted."""
    frames, told, steps = make_frames(5), [], []
    for prepared in (False, True):
        engine = engine_of(model, encoder="stc_cacher", passes="packed")
        if prepared:
            engine.prepare(most_frames=2, most_tokens=64, picture=frames[0].image.shape[:2], on_step=steps.append)
        session = watched(engine, frames)
        told.append(session.store.raw_keys(session.store.spans[-1].id).clone())
        assert session.stats().frames_unprepared == (5 if prepared else 0)
    torch.testing.assert_close(*told, atol=1e-5, rtol=0)
    assert any("motion_tokens: has no packed form" in step for step in steps)
    alone = engine_of(own)
    alone.prepare(most_frames=2, most_tokens=64, picture=frames[0].image.shape[:2])
    session = watched(alone, frames)
    assert session.stats().frames_unprepared == 0
    for number, frame in enumerate(make_frames(2, size=84)):
        session.push(Frame(frame.image, 5.0 + number))
    takes_any_size = own.spec.position_axes > 1
    assert session.stats().frames_unprepared == (2 if takes_any_size else 0)


@pytest.mark.proves("videogpt", 2)
def test_a_chunk_encoder_that_streams_gives_what_it_gives_of_the_whole_clip(model, own, monkeypatch):
    """Offline: every frame beside the three before it, all at once and without a state."""
    frames, (tower,) = make_frames(9), model.side_towers
    lumas = torch.cat([tower.preprocess([frame.image]) for frame in frames])
    places = torch.arange(len(frames))
    chunks = torch.stack([lumas - lumas[(places - back).clamp_min(0)] for back in (1, 2, 3)], dim=1)
    rows, cols = 4, 4
    cells = chunks.reshape(len(frames), 3, rows, SIDE // rows, cols, SIDE // cols).permute(0, 2, 4, 1, 3, 5)
    hidden = cells.reshape(len(frames), rows * cols, -1) @ tower._in
    for layer in tower._layers:
        normed = layer.norm(hidden)
        attended = layer.attend(layer.queries(normed), layer.keys(normed), layer.values(normed))
        hidden = hidden + layer.out(attended)
        hidden = hidden + layer.mlp(hidden)
    beside = ROWS * int(watched(engine_of(own), frames[:1]).stats().tokens_seen ** 0.5)
    offline = hidden[:, :beside] @ tower._to

    engine = engine_of(model)
    session, run, works = engine.open(), engine.passes.run, []
    monkeypatch.setattr(engine.passes, "run", lambda given: works.extend(given) or run(given))
    for frame in frames:
        session.push(frame)
    read = [work.embeddings for work in works if len(work.embeddings) > beside][-len(frames) :]
    assert len(read) == len(frames)
    for expected, found in zip(offline, read, strict=True):
        off = (found.float()[:, None] - expected[None]).abs().amax(-1)  # (tokens read, tokens beside)
        first = int(off[:, 0].argmin())
        torch.testing.assert_close(found[first : first + len(expected)].float(), expected, rtol=1e-4, atol=1e-5)
