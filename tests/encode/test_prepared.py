"""Prepared encoders equal their methods: streams join and leave, with padding, in every way to compute, as graphs."""

import os
import random
import subprocess
import sys

import pytest
import torch
from towers import make_frames, make_tower, regroup

from onlooker.core.errors import InputError, ModelError
from onlooker.encode._packed import PackedTower, StepPlan, Ways, packed_layers
from onlooker.encode._prepared import PreparedEncoder, bucket_sizes
from onlooker.encode.full import Full
from onlooker.encode.stc_published import STCPublished
from onlooker.kernels.rows import vision_kernels
from onlooker.models._siglip import take_apart

SELECTIONS = pytest.mark.parametrize("selection", ["per_layer", "shared", "patch"])


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED, reason="is the outer one")
def test_what_needs_the_interpreter():
    """Triton reads its mode when it is first imported, so interpreted kernels have a process of their own."""
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not gpu",
        "-k",
        "kernels",
        __file__,
    ]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "6 passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-300:]


@pytest.fixture
def interpreted():
    if not INTERPRETED:
        pytest.skip("runs inside test_what_needs_the_interpreter")
    return vision_kernels()


def ready(method, tower, like, ways, max_streams=3, made=None):
    """As `method.prepare`, in a given way."""
    packed = PackedTower(packed_layers(tower), method.plan(tower), ways)
    names = [] if made is None else made
    return PreparedEncoder(tower, packed, method._refresh_flags, like, max_streams, names.append)


def together(method, tower, prepared, videos, seed, steps):
    """Streams that come and go at random: (prepared, method's own) outputs of every frame, and whether it refreshed."""
    chance, live, pairs = random.Random(seed), {}, []
    for _ in range(steps):
        for stream in range(len(videos)):
            if stream not in live and chance.random() < 0.4:
                live[stream] = [0, method.new_state(), method.new_state()]
            elif stream in live and chance.random() < 0.1:
                del live[stream]
        here = [stream for stream in live if chance.random() < 0.8]
        chance.shuffle(here)
        if not here:
            continue
        batch = torch.stack([videos[stream][live[stream][0] % len(videos[stream])] for stream in here])
        got = prepared.encode(batch, [live[stream][1] for stream in here])
        for row, stream in enumerate(here):
            alone = method.encode(tower, batch[row : row + 1], [live[stream][2]])
            assert got.refreshed[row] == alone.refreshed[0] and live[stream][1].age == live[stream][2].age
            if alone.recomputed is not None:
                assert torch.equal(got.recomputed[row], alone.recomputed[0])
            pairs.append((got.hidden[row], alone.hidden[0], alone.refreshed[0]))
            live[stream][0] += 1
    return pairs


def worst(pairs):
    return max(float((got - wanted).abs().max() / wanted.abs().max()) for got, wanted, _ in pairs)


@SELECTIONS
@pytest.mark.parametrize("kind", ["siglip", "clip"])
@torch.no_grad()
def test_plain_steps_equal_the_method(kind, selection):
    module, tower = make_tower(kind)
    method = STCPublished(3, selection=selection)
    videos = [make_frames(module, 8, seed=s) for s in range(3)]
    prepared = method.prepare(tower, videos[0][0], 3, lambda name: None)
    pairs = together(method, tower, prepared, videos, 1, 20)
    assert {refreshed for *_, refreshed in pairs} == {True, False}
    assert worst(pairs) < 3e-6


@SELECTIONS
@torch.no_grad()
def test_kernels_equal_the_method_whatever_the_padding(interpreted, selection):
    module, tower = make_tower(image_size=24, num_layers=2)
    method = STCPublished(3, selection=selection)
    videos = [make_frames(module, 5, seed=s) for s in range(4)]
    made = []
    # Each selection with other ways, so that all of them are tried in whole steps.
    ways = {
        "per_layer": Ways(interpreted, "split", "in_place"),
        "shared": Ways(interpreted, "torch", "in_place"),
        "patch": Ways(interpreted, "split", "split"),
    }[selection]
    prepared = ready(method, tower, videos[0][0], ways, max_streams=4, made=made)
    # Only a step with padding fits, and what it held before must not matter.
    for name in [key for key in prepared._buckets.steps if 1 in key]:
        del prepared._buckets.steps[name]
    prepared._buckets.hidden.fill_(7.0)
    assert len(made) == len(set(made)) > 8
    assert worst(together(method, tower, prepared, videos, 2, 5)) < 3e-6


@torch.no_grad()
def test_kernels_equal_the_dense_tower(interpreted):
    module, tower = make_tower()
    frames = make_frames(module, 3)
    dense = Full().encode(tower, frames, [Full().new_state()] * 3)
    packed = PackedTower(packed_layers(tower), StepPlan(), Ways(interpreted, "split"))
    by_kernels = PreparedEncoder(tower, packed, lambda *_: [True] * 3, frames[0], 3, lambda name: None)
    for prepared in (Full().prepare(tower, frames[0], 3, lambda name: None), by_kernels):
        again = prepared.encode(frames, [Full().new_state()] * 3)
        assert worst(list(zip(again.hidden, dense.hidden, dense.refreshed, strict=True))) < 3e-6
        assert again.refreshed == dense.refreshed


@torch.no_grad()
def test_kernels_never_write_to_results_and_forks_again(interpreted):
    module, tower = make_tower(dim=24, image_size=24, num_layers=2)
    frames, method = make_frames(module, 4), STCPublished(2)
    prepared = ready(method, tower, frames[0], Ways(interpreted), max_streams=1)
    state = method.new_state()
    first = prepared.encode(frames[:1], [state])
    kept, twin = first.hidden.clone(), state.fork()
    seen = twin.trail.clone()
    for frame in frames[1:]:
        prepared.encode(frame[None], [state])
    assert torch.equal(first.hidden, kept) and torch.equal(twin.trail, seen)
    assert not torch.equal(state.trail, seen)
    assert state.num_bytes() == (3 * len(tower.layers) + 1) * frames[0].numel() * 4


@torch.no_grad()
def test_a_stream_may_change_between_a_method_and_its_prepared_form():
    module, tower = make_tower()
    frames, method = make_frames(module, 6), STCPublished(4)
    prepared = method.prepare(tower, frames[0], 1, lambda name: None)
    mixed, alone = method.new_state(), method.new_state()
    pairs = []
    for number, frame in enumerate(frames):
        wanted = method.encode(tower, frame[None], [alone])
        one = prepared.encode(frame[None], [mixed]) if number % 2 else method.encode(tower, frame[None], [mixed])
        pairs.append((one.hidden, wanted.hidden, None))
    assert worst(pairs) < 3e-6


@torch.no_grad()
def test_what_cannot_be_prepared_is_refused():
    module, tower = make_tower()
    frames = make_frames(module, 2)
    with pytest.raises(ModelError, match="metric"):
        STCPublished(metric="l2").prepare(tower, frames[0], 1, lambda name: None)
    with pytest.raises(ModelError, match="beside groups"):
        STCPublished().prepare(regroup(tower, pinned=1, group=4), frames[0], 1, lambda name: None)
    with pytest.raises(ModelError, match="packed form"):
        Full().prepare(regroup(tower, pack=None), frames[0], 1, lambda name: None)


@torch.no_grad()
def test_kernels_refuse_more_streams_than_prepared_for(interpreted):
    module, tower = make_tower(dim=24, image_size=16)
    frames = make_frames(module, 2)
    prepared = ready(STCPublished(), tower, frames[0], Ways(interpreted), max_streams=1)
    with pytest.raises(InputError, match="prepared for 1"):
        prepared.encode(frames, [STCPublished().new_state() for _ in frames])


@torch.no_grad()
def test_all_layers_share_one_compiled_layer():
    """Compiling is minutes of a start; layers differ in weights only, so one compilation serves them all."""
    module, tower = make_tower(num_layers=5)
    frames, method = make_frames(module, 2), STCPublished()
    compiled = []

    def counting(graph, inputs):
        compiled.append(graph)
        return graph.forward

    packed = PackedTower(packed_layers(tower), method.plan(tower), Ways(compiled=counting))
    prepared = PreparedEncoder(tower, packed, method._refresh_flags, frames[0], 1, lambda name: None)
    state, twin = method.new_state(), method.new_state()
    torch._dynamo.reset()
    for frame in frames:
        got, wanted = prepared.encode(frame[None], [state]), method.encode(tower, frame[None], [twin])
        assert worst([(got.hidden, wanted.hidden, None)]) < 3e-6
    assert len(compiled) == 2  # whole and partly computed frames


def test_sizes_waste_at_most_a_third():
    for most in range(1, 40):
        sizes = bucket_sizes(most)
        assert sizes == sorted(set(sizes)) and sizes[-1] == most
        for streams in range(1, most + 1):
            room = min(size for size in sizes if size >= streams)
            assert (room - streams) / room <= 1 / 3


@pytest.mark.gpu
@SELECTIONS
@torch.no_grad()
def test_graphs_equal_eager_over_500_mixed_frames(selection):
    """Bit by bit the same steps run op by op, and the plain method wherever rounding chose the same tokens."""
    module, _ = make_tower(dim=288, image_size=80, num_layers=4)
    videos = [make_frames(module, 12, seed=s).cuda() for s in range(8)]
    tower, method = take_apart(module.cuda()), STCPublished(4, selection=selection)
    packed = PackedTower(packed_layers(tower), method.plan(tower), Ways(vision_kernels(), "torch", "in_place"))
    graphs, by_ops = (
        PreparedEncoder(tower, packed, method._refresh_flags, videos[0][0], 8, lambda name: None, capture)
        for capture in (True, False)
    )
    chance, live, frames, agreed = random.Random(3), {}, 0, 0
    while frames < 500:
        for stream in range(8):
            if stream not in live and chance.random() < 0.4:
                live[stream] = [0, *(method.new_state() for _ in range(3))]
            elif stream in live and chance.random() < 0.1:
                del live[stream]
        here = [stream for stream in live if chance.random() < 0.8]
        if not here:
            continue
        chance.shuffle(here)
        batch = torch.stack([videos[stream][live[stream][0] % 12] for stream in here])
        states = [[live[stream][which] for stream in here] for which in (1, 2, 3)]
        one, two = graphs.encode(batch, states[0]), by_ops.encode(batch, states[1])
        plain = method.encode(tower, batch, states[2])
        assert torch.equal(one.hidden, two.hidden) and torch.equal(one.recomputed, two.recomputed)
        assert one.refreshed == two.refreshed == plain.refreshed
        for row, stream in enumerate(here):
            frames += 1
            live[stream][0] += 1
            if torch.equal(one.recomputed[row], plain.recomputed[row]):
                agreed += 1
                assert worst([(one.hidden[row], plain.hidden[row], None)]) < 1e-3
    assert agreed > 0.9 * frames


@pytest.mark.gpu
@torch.no_grad()
def test_references_of_prepared_steps_are_the_plain_ones():
    """To float32's rounding, on a device: nothing in the kernels or in what libraries fuse is less exact."""
    module, _ = make_tower(dim=288, image_size=80, num_layers=4)
    frames, tower = make_frames(module, 2).cuda(), take_apart(module.cuda())
    method = STCPublished()
    prepared, states = method.prepare(tower, frames[0], 1, lambda name: None), [method.new_state() for _ in range(2)]
    for encode, state in ((prepared.encode, states[0]), (lambda *given: method.encode(tower, *given), states[1])):
        encode(frames[:1], [state])
    for kind in ("gate", "values", "trail"):
        got, wanted = (getattr(state, kind) for state in states)
        assert float((got - wanted).abs().max() / wanted.abs().max()) < 2e-5, kind


@pytest.mark.gpu
@torch.no_grad()
def test_graphs_refuse_more_streams_than_prepared_for():
    module, _ = make_tower(dim=288, image_size=80)
    frames = make_frames(module, 2).cuda()
    prepared = STCPublished().prepare(take_apart(module.cuda()), frames[0], 1, lambda name: None)
    with pytest.raises(InputError, match="prepared for 1"):
        prepared.encode(frames, [STCPublished().new_state() for _ in frames])
