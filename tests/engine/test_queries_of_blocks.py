"""Memories that are told how each new block looked: queries of its last tokens, on every family."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder
from torch import Tensor

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import CapacityError
from onlooker.core.frame import Frame
from onlooker.core.spans import Plan
from onlooker.core.state import StreamState
from onlooker.engine import Engine
from onlooker.models import load

FRAMES, WINDOW, KEEP = 24, 24, 14


@dataclass
class Looks(StreamState):
    """The queries of the newest blocks."""

    replaces: ClassVar[bool] = True

    queries: list[Tensor] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class MostLookedAt(MemoryPolicy):
    """Melts the window to the rows that the newest tokens look at most, head by head (as participative compression)."""

    newest: int = 2

    def new_state(self):
        return Looks()

    @property
    def num_queries(self):
        return self.newest

    def heed(self, block, queries, state):
        state.queries = [*state.queries, queries.clone()][-2:]
        state.blocks = [*state.blocks, block][-2:]

    def plan(self, spans, state):
        assert spans[-1].id == state.blocks[-1], "told of every block, before the plan"
        rows = [span for span in spans if span.kind != "prefix"]
        full = sum(span.num_tokens for span in rows) > WINDOW
        return Plan(melt=tuple(span.id for span in rows)) if full else Plan()

    def pick(self, keys, values, sizes, state):
        asked = torch.cat(state.queries, dim=2).unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
        looked = (asked.float() @ keys.float().transpose(2, 3)).sum(2)
        return looked.topk(min(KEEP, keys.shape[2])).indices.sort(-1).values


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu", pairs=False)


def engine_of(model, passes="plain", memory=None, compressor="stc_pruner:keep=3", **more):
    return Engine(model, encoder="full", compressor=compressor, memory=memory or MostLookedAt(), passes=passes, **more)


def watched(session, frames, first=0):
    for second, frame in enumerate(frames, start=first):
        session.push(Frame(frame.image, float(second)))
    return session


@pytest.mark.parametrize("passes", ["plain", "packed"])
def test_the_queries_are_those_that_the_model_asked_with(model, passes, monkeypatch):
    """Layer by layer, as they came out of the layer's own projection and were rotated to where the block lies."""
    seen = []
    begin = type(model).begin_lean

    class Spy:
        def __init__(self, inner):
            self._inner = inner

        def attend(self, layer, queries, keys, values, scale):
            seen.append(queries.clone())
            return self._inner.attend(layer, queries, keys, values, scale)

    def spied(self, embeddings, attention, extras=None):
        seen.clear()
        return begin(self, embeddings, Spy(attention), extras)

    engine = engine_of(model, passes, compressor="identity")
    session = engine.open()
    monkeypatch.setattr(type(model), "begin_lean", spied)
    session.push(make_frames(1)[0])
    state, span = session.states["memory"], session.store.spans[-1]
    told = state.queries[-1]
    assert told.shape == (model.spec.num_layers, model.spec.num_query_heads, 2, model.spec.head_dim)
    block = session.store._entries[span.id].block
    positions = block.positions + torch.as_tensor(block.written).view(-1, 1)
    cos, sin = model.rotary(positions[:, -2:])
    for layer, queries in enumerate(seen):
        last = queries[:, span.num_tokens - 2 : span.num_tokens]
        first, second = last.chunk(2, dim=-1)
        turned = last * cos + torch.cat((-second, first), dim=-1) * sin
        torch.testing.assert_close(told[layer], turned, rtol=1e-4, atol=1e-5)


def test_packed_equals_plain_and_together_equals_apart(model):
    clips, found = [make_frames(FRAMES, seed=seed) for seed in (1, 2)], []
    for passes in ("plain", "packed"):
        engine = engine_of(model, passes)
        sessions = [engine.open() for _ in clips]
        for second in range(FRAMES):
            engine.step([(s, Frame(c[second].image, float(second))) for s, c in zip(sessions, clips, strict=True)])
        assert passes == "plain" or not engine.passes.counts.plain
        found.append([(s.states["memory"].queries, s.store._window.tensors()) for s in sessions])
        assert all(session.store._window.melted for session in sessions)
    alone = watched(engine_of(model).open(), clips[1])
    for (plain, rows), (packed, others) in zip(*found, strict=True):
        torch.testing.assert_close(plain, packed, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(rows, others, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(alone.states["memory"].queries, found[0][1][0], rtol=1e-3, atol=1e-4)


def test_a_block_larger_than_a_pass_is_told_of_whole(model):
    told = []
    for sizes in (None, [2]):
        engine = engine_of(model, "packed", MostLookedAt(newest=3), compressor="identity")
        if sizes:
            engine.passes.prepare(sizes, lambda name: None, {"deepstack": torch.zeros(1, 2, 32)})
        told.append(watched(engine.open(), make_frames(2)).states["memory"].queries)
    torch.testing.assert_close(*told, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compressor", ["stc_pruner:keep=3", "dycoke"])
def test_frames_given_out_together_are_all_told_of_and_saving_goes_on(model, compressor):
    engine = engine_of(model, compressor=compressor)
    session = watched(engine.open(), make_frames(FRAMES, seed=5)[:14])
    twin, loaded = session.fork(), engine.load(session.export())
    rest = make_frames(FRAMES, seed=5)[14:]
    stores = [watched(one, rest, 14).store._window.tensors() for one in (session, twin, loaded)]
    for other in stores[1:]:
        assert all(map(torch.equal, stores[0], other))
    assert not session.store._queries, "nothing is held between frames"


def test_without_room_the_stream_is_as_it_was(model):
    probe = watched(engine_of(model).open(), make_frames(2))
    held = sum(size for name, size in probe.store.num_bytes().items() if name.startswith("device")) * 3 // 4
    session = engine_of(model, device_budget_bytes=held).open()
    with pytest.raises(CapacityError):
        watched(session, make_frames(FRAMES))
    before = [tensor.clone() for tensor in session.store._window.tensors()]
    queries, frames = list(session.states["memory"].queries), session.frames
    with pytest.raises(CapacityError):
        session.push(Frame(make_frames(FRAMES)[frames].image, float(frames)))
    assert all(map(torch.equal, before, session.store._window.tensors()))
    assert all(map(torch.equal, queries, session.states["memory"].queries)) and not session.store._queries
