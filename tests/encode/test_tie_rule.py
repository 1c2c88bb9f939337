"""Which tokens are recomputed when fewer changed than may be: the same ones in every form, and none that did not."""

import pytest
import torch
from qwen_towers import FAMILIES, make_vision
from towers import make_frames, make_tower

from onlooker.core.state import StreamState
from onlooker.encode._selection import Picked, least_alike, unchanged
from onlooker.encode.stc_published import STCPublished
from onlooker.kernels.selection import STEPS, Chosen, in_steps
from onlooker.models._siglip import embed

SELECTIONS = pytest.mark.parametrize("selection", ["per_layer", "shared", "patch"])


def still_with_motion(module, num_frames=6, seed=0):
    """A still picture of which one patch changes in every frame, and in one frame none: `[frames, tokens, dim]`."""
    size, make = module.config.image_size, torch.Generator().manual_seed(seed)
    frames = [torch.randn(3, size, size, generator=make)]
    for number in range(1, num_frames):
        frames.append(frames[-1].clone())
        if number != 2:
            row, col = (int(torch.randint(size // 8, (), generator=make)) * 8 for _ in range(2))
            frames[-1][:, row : row + 8, col : col + 8] = torch.randn(3, 8, 8, generator=make)
    return embed(module, torch.stack(frames))


def relative(got, wanted):
    return float((got - wanted).abs().max() / wanted.abs().max())


@SELECTIONS
@pytest.mark.parametrize("kind", ["siglip", "clip"])
@torch.no_grad()
def test_every_form_chooses_the_same_tokens(kind, selection):
    """Alone, in a batch and prepared: same tokens, same output. Unchanged tokens are left alone."""
    module, tower = make_tower(kind, num_layers=4)
    videos = torch.stack([still_with_motion(module, seed=seed) for seed in range(3)])
    method = STCPublished(None, recompute_ratio=0.5, selection=selection)
    prepared = method.prepare(tower, videos[0, 0], 3, lambda name: None)
    states: list[list[StreamState]] = [[method.new_state() for _ in videos] for _ in range(3)]
    for number in range(videos.shape[1]):
        frames = videos[:, number]
        alone = [method.encode(tower, frame[None], [state]) for frame, state in zip(frames, states[0], strict=True)]
        for other in (method.encode(tower, frames, states[1]), prepared.encode(frames, states[2])):
            assert torch.equal(torch.cat([each.recomputed for each in alone]), other.recomputed)
            assert relative(other.hidden, torch.cat([each.hidden for each in alone])) < 3e-6
        if number:
            counts = (other.recomputed > 0).sum(1)
            assert int(counts.min()) >= 1 and int(counts.max()) <= number - (number >= 2), "one more patch a frame"


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_groups_of_neighbours_too(family):
    vision = make_vision(family)
    tower, method = vision.tower(6, 10), STCPublished(None, recompute_ratio=0.5)
    make = torch.Generator().manual_seed(1)
    picture = torch.randn(2, 3, 84, 140, generator=make)
    changed = picture.clone()
    changed[0, :, :28, 28:56] = torch.randn(3, 28, 28, generator=make)
    frames = [vision.embed_patches(picture), vision.embed_patches(changed)]
    prepared = method.prepare(tower, frames[0][0], 2, lambda name: None)
    one, two, three = ([method.new_state() for _ in range(2)] for _ in range(3))
    for each in frames:
        batch, made = method.encode(tower, each, one), prepared.encode(each, two)
        alone = [method.encode(tower, frame[None], [state]) for frame, state in zip(each, three, strict=True)]
        for other in (made.hidden, torch.cat([part.hidden for part in alone])):
            assert relative(batch.hidden, other) < 5e-6
        assert torch.equal(batch.recomputed, made.recomputed)
    assert (batch.recomputed > 0).sum(1).tolist() == [4, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", ["", "rolling", "l2", "l1", "dot", "value", "hidden", "correct"])
@torch.no_grad()
def test_a_repeated_frame_recomputes_nothing(dtype, settings):
    """Whatever change is measured on, in half precision too: rounding is no change."""
    method = {
        "": STCPublished(None),
        "rolling": STCPublished(None, reference="rolling"),
        "correct": STCPublished(None, correct_stale=0.5),
        **{metric: STCPublished(None, metric=metric) for metric in ("l2", "l1", "dot")},
        **{feature: STCPublished(None, feature=feature) for feature in ("value", "hidden")},
    }[settings]
    module, tower = make_tower(num_layers=6)
    frame = make_frames(module, 1).to(dtype)
    for layer in module.modules():
        layer.to(dtype)
    state = method.new_state()
    first = method.encode(tower, frame, [state])
    again = method.encode(tower, frame, [state])
    if dtype is torch.bfloat16 and settings == "rolling":
        return  # what it stores are sums of branches, which half precision does not add up to the same
    assert not again.recomputed.any()
    assert relative(again.hidden, first.hidden) <= (0 if settings != "rolling" else 3e-6)


@pytest.mark.parametrize("group, pinned", [(1, 0), (4, 0), (4, 1)])
def test_rounding_changes_no_choice(group, pinned):
    """Cosines of 1 +- 2e-7, and real ones between them."""
    make = torch.Generator().manual_seed(0)
    exact = torch.ones(2, 48 + pinned)
    exact[0, pinned + 8 : pinned + 16] = torch.linspace(0.2, 0.9, 8)
    count = pinned + 24
    wanted = None
    for _ in range(20):
        noisy = exact + 2e-7 * (2 * torch.rand(exact.shape, generator=make) - 1)
        index, changed = least_alike(noisy, count, group, pinned)
        assert index.shape == changed.shape == (2, count)
        picked = index[0][changed[0]].tolist(), index[1][changed[1]].tolist()
        wanted = wanted or picked
        assert picked == wanted
    always = list(range(pinned)) if group > 1 else []
    assert wanted == ([*always, *range(pinned + 8, pinned + 16)], always)


def test_position_settles_ties_and_a_ratio_of_one_takes_all():
    scores = torch.full((1, 12), 0.5)
    index, changed = least_alike(scores, 5)
    assert index.tolist() == [[0, 1, 2, 3, 4]] and changed.all()
    index, changed = least_alike(torch.ones(1, 12), 12)
    assert index.tolist() == [list(range(12))] and changed.all()
    assert Picked.of(*least_alike(torch.ones(3, 12), 5), 12).index.shape == (3, 1)
    assert in_steps(torch.tensor([1 - 2e-7, 1 + 2e-7, 1.0])).tolist() == [STEPS] * 3


@pytest.mark.parametrize("metric", ["l1", "l2", "dot"])
def test_what_no_change_is_by_other_metrics(metric):
    reference = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    current = reference.clone()
    current[0, 2] *= 1.001
    current[0, 3] *= 1.02
    current[0, 4] = 0
    assert unchanged(current, reference, metric).tolist() == [[True, True, True, False, False, True]]


def test_rows_without_a_change_have_no_place():
    chosen = Chosen(1, 2, 6, 3, torch.device("cpu"))
    chosen.choose(torch.tensor([[1.0, 1 + 2e-7, 0.4, 1.0, 1.0, 1.0], [0.1, 0.3, 0.2, 0.4, 1.0, 1.0]]), None)
    assert chosen.rows.tolist() == [-1, -1, 6, -1, -1, -1, 9, 11, 10, -1, -1, -1]
    assert chosen.times.tolist() == [[0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("still", [0, 5, 14, 20], ids=lambda still: f"{still}still")
def test_the_short_way_on_a_cpu_picks_the_same(streams: int, still: int) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        alike = torch.rand(streams, 20, generator=generator) * 2 - 1
        alike = (alike * 8).round() / 8 - 1e-4  # many ties
        alike[:, torch.randperm(20, generator=generator)[:still]] = 1.0
        for count in (1, 6, 19):
            short, plain = Picked.among(alike, count), Picked.of(*least_alike(alike, count), 20)
            assert torch.equal(short.index, plain.index) and torch.equal(short.flat, plain.flat)
            assert (short.changed is None) == (plain.changed is None)
            assert short.changed is None or torch.equal(short.changed, plain.changed)
