"""A session saved and loaded goes on to the bit, whatever the load was; what is damaged is refused by name."""

import copy
import json
import random

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.compress.stc_pruner import STCPruner
from onlooker.core.errors import CapacityError, InputError, OnlookerError
from onlooker.core.frame import Frame
from onlooker.engine import Engine, Saved
from onlooker.engine.scheduler import Scheduler
from onlooker.models import load

QUESTION = "what is happening in the video ?"
SETTINGS = {
    "encoder": "stc_published:interval=3,recompute_ratio=0.25",
    "compressor": "stc_pruner:keep=3",
    "memory": "rekv:topk=2,recent=1,window_tokens=6",
}


@pytest.fixture(scope="module", params=FAMILIES)
def family_engine(request, tmp_path_factory):
    model = load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu")
    return Engine(model, **SETTINGS)


@pytest.fixture(scope="module")
def engine(tiny_model):
    return Engine(tiny_model, **SETTINGS)


@pytest.fixture(scope="module")
def saved(engine):
    return watched(engine).export()


def watched(engine, count=5):
    session = engine.open()
    for frame in make_frames(count):
        session.push(frame)
    return session


def written(saved: Saved) -> Saved:
    """As it comes back from a file."""
    return Saved({name: tensor.clone() for name, tensor in saved.tensors.items()}, json.loads(json.dumps(saved.facts)))


def goes_on(session, count=4) -> list:
    told = [session.push(Frame(f.image, 50.0 + f.time_s)) for f in make_frames(count, seed=3)]
    return [*told, session.ask(QUESTION, max_new_tokens=4).text]


def test_it_goes_on_as_if_it_had_never_stopped(family_engine):
    session = watched(family_engine)
    before = written(session.export())
    twin = family_engine.load(before)
    assert twin.stats().frames == session.stats().frames == 5
    assert goes_on(twin) == goes_on(session)
    tensors, others = session.export().tensors, twin.export().tensors
    assert tensors.keys() == others.keys()
    assert all(torch.equal(others[name], tensor) for name, tensor in tensors.items())


def test_a_session_without_frames_can_be_saved(engine):
    twin = engine.load(written(engine.open().export()))
    assert twin.time_s is None and twin.stats().frames == 0
    twin.push(make_frames(1)[0])


def test_the_ladder_of_overload_does_not_matter(tiny_model):
    engine = Engine(tiny_model, **SETTINGS)
    scheduler = Scheduler(engine)
    session = watched(engine)
    high = written(session.export())
    for degrade_level in scheduler.levels:
        engine.use(**degrade_level.methods)
    assert engine.serving.compressor != STCPruner(keep=3), "with less"
    low = written(session.export())
    assert low.facts["made_by"] == high.facts["made_by"]
    assert engine.load(high).stats().frames == 5
    scheduler.close()
    assert engine.load(low).stats().frames == 5
    for other in ({"compressor": "stc_pruner:keep=2"}, {"memory": "full"}, {"encoder": "full"}):
        with pytest.raises(InputError, match="other methods"):
            Engine(tiny_model, **SETTINGS | other).load(low)


def test_budgets_hold_for_what_is_loaded(tiny_model, saved):
    for budget in ("device_budget_bytes", "host_budget_bytes"):
        small = Engine(tiny_model, **SETTINGS, **{budget: 14_000 if budget.startswith("device") else 100})
        with pytest.raises(CapacityError):
            small.load(written(saved))
        assert not [one for one in small.sessions if one.frames]


def places(facts, path=()):
    """Paths to everything inside the facts."""
    items = facts.items() if isinstance(facts, dict) else enumerate(facts) if isinstance(facts, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


NONSENSE = ("x", "9", "", None, -1, 3, 10**30, 0.5, float("nan"), True, [], {}, ["x"], {"tensor": "y"}, {"list": 3})


def spoil_facts(rng, facts) -> None:
    path = rng.choice([path for path in places(facts) if path[0] != "sha256"])
    at = facts
    for key in path[:-1]:
        at = at[key]
    act = rng.random()
    if act < 0.15:
        del at[path[-1]]
    elif act < 0.25 and isinstance(at, list):
        at.append(copy.deepcopy(at[path[-1]]))
    elif act < 0.3 and isinstance(at, dict):
        at[f"{path[-1]}?"] = at[path[-1]]
    else:
        at[path[-1]] = copy.deepcopy(rng.choice(NONSENSE))


def spoil_tensors(rng, tensors, only="") -> None:
    name = rng.choice(sorted(name for name in tensors if name.startswith(only)))
    tensor = tensors[name]
    act = rng.randrange(6)
    if act == 0:
        del tensors[name]
    elif act == 1:
        tensors[f"{name}?"] = tensor
    elif act == 2:
        tensors[name] = tensor.flatten()[:-1] if tensor.numel() else torch.zeros(1)
    elif act == 3:
        tensors[name] = tensor.to(torch.float16 if tensor.is_floating_point() else torch.int32)
    elif act == 4:
        tensors[name] = tensor[None]
    else:
        tensors[name] = torch.cat([tensor, tensor], -1) if tensor.ndim else tensor[None]


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_changed_is_noticed(engine, saved, seed):
    rng, copied = random.Random(seed), written(saved)
    if seed % 3:
        spoil_facts(rng, copied.facts)
    elif seed % 2:
        spoil_tensors(rng, copied.tensors)
    else:
        name = rng.choice([name for name, tensor in copied.tensors.items() if tensor.is_floating_point()])
        copied.tensors[name] = torch.randn_like(copied.tensors[name])
    if json.dumps(copied.facts, sort_keys=True) == json.dumps(saved.facts, sort_keys=True) and seed % 3:
        return  # what was drawn was there before
    before = len(engine.sessions)
    with pytest.raises(InputError) as refused:
        engine.load(copied)
    assert str(refused.value)
    del refused
    assert len(engine.sessions) <= before, "the session that was begun is closed"


@pytest.mark.parametrize("seed", range(250))
def test_behind_a_right_checksum_every_field_is_checked(engine, saved, seed):
    """Refused by name, or a session that goes on: never an error of another kind, then or later."""
    rng, copied = random.Random(1000 + seed), written(saved)
    if seed % 4:
        spoil_facts(rng, copied.facts)
    else:
        spoil_tensors(rng, copied.tensors, only="store/")
    copied = Saved(copied.tensors, copied.facts).sealed()
    try:
        session = engine.load(written(copied))
    except InputError as refused:
        assert str(refused)
        return
    try:
        last = session.time_s or 0.0
        session.push(Frame(make_frames(1)[0].image, last + 1.0))
        session.ask(QUESTION, max_new_tokens=1)
        session.stats()
    except OnlookerError as said:
        assert str(said)
    finally:
        session.close()


def test_what_must_be_refused_by_name(engine, saved):
    wrong = {
        ("time_s",): "x", ("frames",): "9", ("totals", "frames"): None, ("totals", "stage_s"): {"encode": "x"},
        ("parts", "memory", "num_blocks"): "3", ("parts", "encoder", "age"): "1", ("parts", "store", "next_id"): 0,
        ("parts", "store", "blocks", 1, "num_tokens"): 10**9, ("parts", "store", "blocks", 1, "start_s"): "x",
        ("parts", "store", "blocks", 1, "offset"): [1, 2, 3, 4, 5], ("format",): 1, ("made_by", "model"): "other",
    }  # fmt: skip
    for path, value in wrong.items():
        copied = written(saved)
        at = copied.facts
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        with pytest.raises(InputError):
            engine.load(written(copied.sealed()))
