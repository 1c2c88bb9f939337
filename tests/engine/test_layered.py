"""Memories whose layers see different things: right, in packed passes, beside frames that wait, saved and forked."""

import pytest
import torch
from stock_models import FAMILIES
from test_pairs import clip, close, scores_after, watch
from tiny import make_family_folder

from onlooker.core.contracts import MemoryPolicy
from onlooker.core.errors import CapacityError, InputError
from onlooker.core.spans import Plan, Recall
from onlooker.core.state import StreamState
from onlooker.engine import Decoding, Engine
from onlooker.models import load

QUESTION = "which shape left first ?"


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu")


def engine_of(model, memory, **more):
    return Engine(model, encoder="full", compressor="identity", memory=memory, **more)


class ByLayer(MemoryPolicy):
    """Parks all but the newest blocks; layer number n sees every so many of them."""

    layered = True

    def new_state(self):
        return StreamState()

    def plan(self, spans, state):
        return Plan(park=tuple(s.id for s in spans[1:-2] if s.tier.value == "device"))

    def recall_layer(self, layer, num_layers, spans, state):
        return Recall(tuple(span.id for n, span in enumerate(spans) if n % (layer + 1) == 0))


def test_all_layers_that_look_are_full_memory(model):
    frames = clip(8)
    full, all_look = (watch(engine_of(model, memory), frames) for memory in ("full", "late_drop:last=1.0"))
    torch.testing.assert_close(scores_after(all_look), scores_after(full), rtol=0, atol=0)
    late = watch(engine_of(model, "late_drop:last=0.4"), frames)
    assert not torch.allclose(scores_after(late), scores_after(full), atol=1e-3)


@pytest.mark.parametrize(
    "memory",
    ["late_drop:last=0.4", "late_drop:first=0.4,last=0.7", ByLayer()],
    ids=lambda one: str(one) if isinstance(one, str) else type(one).__name__,
)
def test_packed_equals_plain_and_streams_stay_apart(model, memory):
    plain, packed = engine_of(model, memory, passes="plain"), engine_of(model, memory, passes="packed")
    clips = [clip(8, seed=1), clip(8, seed=2)]
    together = [packed.open(), packed.open()]
    for pair in zip(*clips, strict=True):
        packed.step(list(zip(together, pair, strict=True)))
    for session, frames in zip(together, clips, strict=True):
        close(scores_after(session, engine=packed), scores_after(watch(plain, frames)))
    assert packed.passes.counts.plain == 0, "ragged layers are packed"
    flying = [session.submit(QUESTION, decoding=Decoding(max_new_tokens=4)) for session in together]
    while active := [one for one in flying if not one.done]:
        packed.step([], active)
    for session, one in zip(together, flying, strict=True):
        assert one.answer().text == session.ask(QUESTION, max_new_tokens=4).text
        assert one.answer().citations


def test_frames_that_wait_are_read_beside_ragged_layers(model):
    """They may start elsewhere in each layer: such passes are plain, and counted."""
    engine = engine_of(model, ByLayer(), passes="packed")
    session = watch(engine, clip(9))
    waits = bool(session.waiting)
    plain = watch(engine_of(model, ByLayer(), passes="plain"), clip(9))
    close(scores_after(session, engine=engine), scores_after(plain))
    assert engine.passes.counts.plain <= waits


def test_forked_and_saved_it_goes_on(model):
    engine = engine_of(model, "late_drop:last=0.4")
    session = watch(engine, clip(7))
    for twin in (session.fork(), engine.load(session.export())):
        torch.testing.assert_close(scores_after(twin), scores_after(session), rtol=0, atol=0)


def test_layers_that_do_not_fit_are_refused_and_the_stream_goes_on(model):
    probe = watch(engine_of(model, ByLayer()), clip(20)).stats().memory_bytes
    room = sum(size for name, size in probe.items() if name.startswith("device"))
    engine = engine_of(model, ByLayer(), device_budget_bytes=room + 2000)
    session = watch(engine, clip(20))
    with pytest.raises(CapacityError, match="the question sees"):
        session.ask(QUESTION)
    session.push(clip(21)[20])


def test_layers_that_never_look_are_refused():
    for wrong in ("late_drop:first=0.5,last=0.5", "late_drop:last=1.5"):
        with pytest.raises(InputError, match="have to see"):
            Engine.from_pretrained("pocket", memory=wrong, device="cpu")
