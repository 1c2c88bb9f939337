"""Models with a second vision tower: a tiny random clip encoder beside the tower of each family."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from moving_pictures import make_frames
from side_towers import Motion
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.compress import Scorer
from onlooker.core.errors import InputError, ModelError
from onlooker.core.state import StreamState
from onlooker.encode import STCCacher
from onlooker.engine import Engine
from onlooker.models import load

QUESTION = "what is happening in the video ?"
MEMORIES = ("full", "rekv:topk=2,recent=1,window_tokens=30", "last_frames:frames=4")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """A family that reads frames as it was trained: in pairs, or singly."""
    return with_motion(request.param, tmp_path_factory.mktemp(request.param))


def with_motion(name, folder, version="1", share=0.5):
    model = load(make_family_folder(name, folder), device="cpu")
    model.attach_tower(Motion(model.tower(tuple(pixels_of(model).shape)).dim, version, share))
    return model


def pixels_of(model):
    return torch.cat(model.preprocess([make_frames(1)[0].image] * model.patch_frames))


def engine_of(model, memory="full", encoder="full", passes="plain", **more):
    return Engine(model, encoder=encoder, compressor="uniform:keep=4", memory=memory, passes=passes, **more)


def watched(engine, frames):
    session = engine.open()
    for frame in frames:
        session.push(frame)
    return session


def keys_of(session):
    return session.store.raw_keys(session.store.spans[-1].id).clone()


def test_what_it_sees_reaches_the_language_model_with_its_state(model):
    frames = make_frames(8)
    plain = load_twin(model, share=0.0)
    told = {name: watched(engine_of(one), frames) for name, one in (("both", model), ("own", plain))}
    assert not torch.allclose(keys_of(told["both"]), keys_of(told["own"]))
    state = told["both"].states["motion"]
    assert len(state.before) == 4
    bytes_held = told["both"].stats().memory_bytes
    assert bytes_held["motion_state"] == state.num_bytes() == 4 * 28 * 28 * 4
    # It has a memory: the same last frame after another past is seen otherwise.
    other = watched(engine_of(model), [*make_frames(6, seed=9), *frames[6:]])
    assert not torch.allclose(keys_of(told["both"]), keys_of(other))


def load_twin(model, **more):
    """The same model with another second tower."""
    import copy

    twin = copy.copy(model)
    twin.side_towers, twin.offers = (), model.offers - {"motion", "speed"}
    twin.attach_tower(Motion(model.tower(tuple(pixels_of(model).shape)).dim, **more))
    return twin


def test_with_no_share_it_changes_nothing_to_the_bit(model):
    import copy

    alone = copy.copy(model)
    alone.side_towers = ()
    frames = make_frames(6)
    beside = watched(engine_of(load_twin(model, share=0.0)), frames)
    assert torch.equal(keys_of(beside), keys_of(watched(engine_of(alone), frames)))


@pytest.mark.parametrize("encoder", ["full", "stc_cacher", "stc_published"])
def test_the_encoder_keeps_a_state_in_each_tower(model, encoder):
    engine = engine_of(model, encoder=encoder)
    session = watched(engine, make_frames(8))
    own, beside = session.states["encoder"], session.states["encoder.motion"]
    stats = session.stats().memory_bytes
    assert stats["encoder_state"] == own.num_bytes() and stats["encoder.motion_state"] == beside.num_bytes()
    assert (own.num_bytes() > 0) == (beside.num_bytes() > 0) == (encoder != "full")


def test_the_cacher_recomputes_all_when_asked_in_both_towers(model):
    frames = make_frames(8)
    exact = watched(engine_of(model), frames)
    cached = watched(
        engine_of(model, encoder=STCCacher(tau=0, recompute_ratio=1.0, look_every=1, refresh_share=None)), frames
    )
    torch.testing.assert_close(keys_of(cached), keys_of(exact), atol=2e-4, rtol=0)
    sparing = watched(engine_of(model, encoder=STCCacher(tau=1.5, refresh_share=None)), frames)
    assert not torch.allclose(keys_of(sparing), keys_of(exact), atol=1e-6)


def test_prepared_steps_give_the_same(model):
    frames, told = make_frames(6), []
    for prepared in (False, True):
        engine = engine_of(model, encoder="stc_cacher")
        if prepared:
            steps = []
            size = frames[0].image.shape[:2]
            engine.prepare(most_frames=2, most_tokens=64, picture=size, on_step=steps.append)
        told.append(keys_of(watched(engine, frames)))
    torch.testing.assert_close(*told, atol=1e-5, rtol=0)


@pytest.mark.parametrize("memory", MEMORIES)
def test_streams_stay_apart_in_one_step_packed_or_not(model, memory):
    clips, told = [make_frames(6, seed=seed) for seed in (0, 5)], []
    for passes in ("plain", "packed"):
        engine = engine_of(model, memory, "stc_cacher", passes)
        together, alone = [engine.open(), engine.open()], engine.open()
        for pair in zip(*clips, strict=True):
            engine.step(list(zip(together, pair, strict=True)))
        for frame in clips[1]:
            alone.push(frame)
        told.append([session.ask(QUESTION, max_new_tokens=4).text for session in (*together, alone)])
        assert told[-1][1] == told[-1][2]
        assert all(map(torch.equal, together[1].states["motion"].before, alone.states["motion"].before))
    assert told[0] == told[1]


@pytest.mark.parametrize("encoder", ["full", "stc_cacher"])
def test_it_is_forked_saved_loaded_and_let_go(model, encoder):
    frames = make_frames(11)
    engine = engine_of(model, encoder=encoder)
    session = watched(engine, frames[:7])  # of a pair, one frame waits
    twin, loaded = session.fork(), engine.load(session.export())
    assert session.ask(QUESTION, max_new_tokens=4).text == loaded.ask(QUESTION, max_new_tokens=4).text
    for frame in frames[7:]:
        for one in (session, twin, loaded):
            one.push(frame)
    befores = [one.states["motion"].before for one in (session, twin, loaded)]
    assert all(map(torch.equal, befores[0], befores[1])) and all(map(torch.equal, befores[0], befores[2]))
    assert len({one.ask(QUESTION, max_new_tokens=4).text for one in (session, twin, loaded)}) == 1
    session.close()
    assert not session.states["motion"].before and session.states["encoder.motion"].num_bytes() == 0


def test_a_frame_that_was_refused_leaves_no_trace_in_it(model, monkeypatch):
    engine = engine_of(model, encoder="stc_cacher")
    frames = make_frames(6)
    session = watched(engine, frames[:4])
    before = list(session.states["motion"].before)

    def fails(self, spans, state):
        raise ZeroDivisionError("once")

    with monkeypatch.context() as broken:
        broken.setattr(type(session.memory), "plan", fails)
        with pytest.raises(ZeroDivisionError):
            for frame in frames[4 : 4 + model.patch_frames]:
                session.push(frame)
    assert all(map(torch.equal, session.states["motion"].before, before))


def test_a_session_of_other_weights_is_refused(tmp_path):
    models = [with_motion("llava_onevision", tmp_path / version, version) for version in ("1", "2")]
    saved = watched(engine_of(models[0]), make_frames(2)).export()
    with pytest.raises(InputError, match="another model"):
        engine_of(models[1]).load(saved)


@dataclass(frozen=True)
class Fast(Scorer):
    """Needs what the second tower offers."""

    needs: ClassVar[frozenset[str]] = frozenset({"motion", "speed"})

    def new_state(self):
        return StreamState()

    def scores(self, features, batch, states, pruned):
        return features.float().norm(dim=-1)


def test_methods_need_it_by_name_and_names_are_its_own(tmp_path):
    model = with_motion("llava_onevision", tmp_path)
    engine = Engine(model, encoder="full", compressor=Fast(keep=2), memory="full")
    assert engine.open().push(make_frames(1)[0]).tokens_kept == 2
    plain = load(tmp_path, device="cpu")
    with pytest.raises(ModelError, match="motion, speed"):
        Engine(plain, encoder="full", compressor=Fast(keep=2), memory="full")
    with pytest.raises(InputError, match="a tower needs a name of its own"):
        model.attach_tower(Motion(32))


def test_what_a_frame_costs_is_all_towers_together(model):
    picture = make_frames(1)[0].image
    towers = model.towers([picture] * model.patch_frames)
    assert list(towers) == ["", "motion"] and towers["motion"].num_tokens == 16
    assert towers[""].num_tokens == model.tower(tuple(pixels_of(model).shape)).num_tokens
