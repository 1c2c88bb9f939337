"""The reference moves along with the picture, by the encoder's word or by search; and which branch of it is reused."""

import numpy as np
import pytest
import torch

from onlooker import models
from onlooker.core.codec import CodecRecord
from onlooker.core.contracts import CELLS
from onlooker.core.errors import InputError, ModelError
from onlooker.core.frame import Frame
from onlooker.encode import STCPublished
from onlooker.encode._motion import find, searched
from onlooker.encode.full import Full
from onlooker.engine.hints import hand_on
from onlooker.engine.seeing import Patch


@pytest.fixture(scope="module")
def model():
    return models.load("pocket-naive")


def ground(seed=0, side=256):
    """Blobs of a few pixels, so that every patch can be told from its neighbours."""
    cells = np.random.default_rng(seed).integers(0, 255, (side // 4, side // 4, 3), dtype=np.uint8)
    return cells.repeat(4, 0).repeat(4, 1)


def view(right=0, seed=0, record=None):
    """What a camera sees that has turned right by so many pixels."""
    return Frame(np.ascontiguousarray(ground(seed)[64:192, 64 + right : 192 + right]), 0.0, codec=record)


def record(right, kind="P", size=100, blocks=8):
    """What an encoder says of a turn of so many pixels: what is here now was farther to the right."""
    motion = np.zeros((blocks, blocks, 2), np.float32)
    motion[..., 1] = right / 128
    return CodecRecord(kind, 1, int(kind == "I"), size, motion, np.ones((blocks, blocks), np.float32))


class Watch:
    """One stream of a method, frame after frame."""

    def __init__(self, model, method):
        self.model, self.method, self.state = model, method, method.new_state()

    @torch.no_grad()
    def see(self, frame):
        (pixels,) = self.model.preprocess([frame.image])
        self.tower, hidden = self.model.tower(tuple(pixels.shape)), self.model.embed_patches(pixels[None])
        if self.method.hears_codec or self.method.sees_pictures:
            hand_on(self.method, [Patch((frame,))], [{"encoder": self.state}], self.tower, hidden.device)
        self.hidden = hidden
        return self.method.encode(self.tower, hidden, [self.state])

    @torch.no_grad()
    def error(self, frame):
        found = self.see(frame)
        dense = Full().encode(self.tower, self.hidden, [self.state]).hidden
        return float((found.hidden - dense).norm() / dense.norm())


def test_a_search_finds_where_everything_was():
    made = torch.Generator().manual_seed(0)
    before = torch.rand(1, 48, 48, generator=made) * 255
    now = before.roll((2, -5), (1, 2))  # down by 2 cells, left by 5
    found = searched(now, before).view(12, 12, 2)[2:-2, 2:-2]
    assert (found == torch.tensor([-2.0, 5.0])).all()
    assert (searched(before, before) == 0).all()
    assert (searched(torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)) == 0).all(), "of equal matches the nearest"


@pytest.mark.parametrize("by", ["codec", "search"])
def test_motion_is_followed_from_frame_to_frame(model, by):
    """Three turns by half a patch: one patch and a half, wherever it was inside of the picture."""
    watch = Watch(model, STCPublished(interval=0, motion=by))
    grid = model.tower(tuple(model.preprocess([view().image])[0].shape)).grid
    step = 128 // grid[1] // 2
    for number in range(4):
        watch.see(view(step * number, record=record(step if number else 0)))
    shift = watch.state.shift.view(*grid, 3)
    inside = shift[2:-2, 2:-3]
    assert (inside[..., 2] == 0).all() and watch.state.num_fallbacks == 0
    middle = inside[..., :2].flatten(0, 1).median(0).values
    assert middle.tolist() == pytest.approx([0, 3 * step / 128], abs=0.3 / grid[1])
    assert shift[:, -1, 2].all(), "what came in from the right is lost"


@pytest.mark.parametrize("by", ["codec", "search"])
@pytest.mark.parametrize("selection", ["per_layer", "codec", "patch"])
@pytest.mark.parametrize("reference", ["fixed", "rolling"])
def test_a_moved_reference_is_nearer_when_the_camera_turns(model, by, selection, reference):
    settings = {"interval": 0, "recompute_ratio": 0.1, "selection": selection, "reference": reference}
    side = 128 // model.tower(tuple(model.preprocess([view().image])[0].shape)).grid[1]
    errors = []
    for motion in ("none", by):
        watch = Watch(model, STCPublished(motion=motion, **settings))
        watch.see(view(record=record(0)))
        errors.append(watch.error(view(2 * side if by == "codec" else side, record=record(2 * side))))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("reference", ["fixed", "rolling"])
def test_where_nothing_moves_nothing_is_different(model, reference):
    """To the bit, whoever says so."""
    frames = [view(record=record(0)), view(seed=1, record=record(0)), view(seed=2, record=record(0))]
    plain, moved = (Watch(model, STCPublished(reference=reference, motion=motion)) for motion in ("none", "codec"))
    for frame in frames:
        assert torch.equal(plain.see(frame).hidden, moved.see(frame).hidden)


def test_silence_is_counted_and_searched(model):
    watch, asked = Watch(model, STCPublished(motion="codec")), Watch(model, STCPublished(motion="search"))
    for number in range(3):
        assert torch.equal(watch.see(view(8 * number)).hidden, asked.see(view(8 * number)).hidden)
    assert watch.state.num_fallbacks == 2 and asked.state.num_fallbacks == 0
    assert asked.method.sees_pictures and not asked.method.hears_codec and watch.method.hears_codec


def test_streams_are_found_apart_and_together_alike(model):
    tower = model.tower(tuple(model.preprocess([view().image])[0].shape))
    lattice = [CELLS * side for side in tower.grid]

    def states():
        made = [STCPublished().new_state() for _ in range(3)]
        for seed, state in enumerate(made):
            state.shown, state.picture = (view(right, seed=seed).brightness(*lattice) for right in (0, 8 * seed))
        return made

    both = find(states(), tower, torch.device("cpu"), by_codec=False)
    for number, state in enumerate(states()):
        one = find([state], tower, torch.device("cpu"), by_codec=False)
        assert torch.equal(one.place[0], both.place[number]) and torch.equal(
            one.residue[0].isnan(), both.residue[number].isnan()
        )


def test_a_burst_or_a_new_beginning_is_a_refresh(model):
    """Where the encoder spends far more than it is used to; a source that says nothing changes nothing."""
    watch = Watch(model, STCPublished(interval=0, refresh_on_burst=4))
    sizes = [("I", 5000), ("P", 100), ("P", 130), ("P", 600), ("P", 120), ("I", 5000), ("P", 100)]
    flags = [watch.see(view(record=record(0, kind, size))).refreshed[0] for kind, size in sizes]
    assert flags == [True, False, False, True, False, True, False]
    silent = Watch(model, STCPublished(interval=0, refresh_on_burst=4))
    assert [silent.see(view()).refreshed[0] for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize("reused", ["attention", "mlp"])
@pytest.mark.parametrize("reference", ["fixed", "rolling"])
def test_one_branch(model, reused, reference):
    """All tokens anew are the dense layer; the reference again is itself; between, one branch errs less than both."""
    whole = STCPublished(interval=0, recompute_ratio=1.0, reused=reused, reference=reference)
    watch = Watch(model, whole)
    watch.see(view())
    assert watch.error(view(seed=1)) < 1e-5
    watch = Watch(model, STCPublished(interval=0, reused=reused, reference=reference))
    first = watch.see(view()).hidden
    assert torch.allclose(watch.see(view()).hidden, first, atol=1e-4)
    errors = []
    for branch in ("both", reused):
        watch = Watch(model, STCPublished(interval=0, reused=branch, reference=reference))
        watch.see(view())
        errors.append(watch.error(view(seed=1)))
    assert errors[1] < errors[0]


def test_what_one_branch_costs(model):
    """More than with both reused, less than nothing reused; a key a token is computed either way."""
    tower = model.tower(tuple(model.preprocess([view().image])[0].shape))
    both, attention, mlp = (STCPublished(reused=reused).cost(tower) for reused in ("both", "attention", "mlp"))
    assert both < attention < 1 and both < mlp < 1


def test_what_does_not_go_together_is_said(model):
    with pytest.raises(InputError, match="both branches"):
        STCPublished(reused="mlp", correct_stale=0.5)
    with pytest.raises(InputError, match="refresh_on_burst"):
        STCPublished(refresh_on_burst=0.5)
    tower = model.tower(tuple(model.preprocess([view().image])[0].shape))
    for name, value in (("motion", "search"), ("reused", "mlp"), ("refresh_on_burst", 4.0)):
        with pytest.raises(ModelError, match=name):
            STCPublished(**{name: value}).plan(tower)
