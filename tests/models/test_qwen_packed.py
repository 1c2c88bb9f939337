"""The packed form of Qwen towers equals their plain form: windows, merge blocks, taps, kernels, and in an engine."""

import dataclasses
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import make_qwen_folder, make_qwen_network, make_qwen_tokenizer

from onlooker.core.errors import ModelError
from onlooker.core.frame import Frame
from onlooker.encode._packed import PackedTower, Ways, packed_layers
from onlooker.encode._prepared import PreparedEncoder
from onlooker.encode.full import Full
from onlooker.encode.stc_published import STCPublished
from onlooker.engine import Engine
from onlooker.kernels.rows import vision_kernels
from onlooker.models import SHAPES, load, qwen2_5_vl, qwen3_vl
from onlooker.models._qwen_random import random_vision
from onlooker.models._shapes import QwenShape

VISIONS = {"qwen2_5_vl": qwen2_5_vl.Vision, "qwen3_vl": qwen3_vl.Vision}
EACH = pytest.mark.parametrize("family", VISIONS)
METHODS = pytest.mark.parametrize(
    "method",
    [STCPublished(3), STCPublished(3, selection="shared"), STCPublished(3, 0.5, selection="patch"), Full()],
    ids=["per_layer", "shared", "patch", "full"],
)
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
    assert "2 passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-300:]


@pytest.fixture(scope="module")
def visions():
    return {family: kind(make_qwen_network(make_qwen_tokenizer(), family)) for family, kind in VISIONS.items()}


@torch.no_grad()
def moving(vision, count, size, seed=0):
    """Embedded frames `[frames, tokens, dim]`, each with some blocks of the one before changed."""
    make = torch.Generator().manual_seed(seed)
    frames = [torch.randn(3, *size, generator=make)]
    for _ in range(count - 1):
        where = torch.rand(1, size[0] // 28, size[1] // 28, generator=make).lt(0.3)
        where = where.repeat_interleave(28, 1).repeat_interleave(28, 2)
        new, drift = torch.randn(3, *size, generator=make), 0.05 * torch.randn(3, *size, generator=make)
        frames.append(torch.where(where, new, frames[-1] + drift))
    return vision.embed_patches(torch.stack(frames))


def agree(method, prepared, tower, videos, steps=5, tolerance=3e-6):
    """Streams that come and go at random see the same, prepared and plain."""
    chance = random.Random(0)
    states = [(method.new_state(), method.new_state()) for _ in videos]
    seen, refreshed = [0] * len(videos), set()
    for _ in range(steps):
        here = [stream for stream in range(len(videos)) if chance.random() < 0.8] or [0]
        batch = torch.stack([videos[stream][seen[stream]] for stream in here])
        got = prepared.encode(batch, [states[stream][0] for stream in here])
        wanted = method.encode(tower, batch, [states[stream][1] for stream in here])
        assert got.refreshed == wanted.refreshed and got.taps.keys() == wanted.taps.keys() == tower.tap_layers
        if wanted.recomputed is not None:
            assert torch.equal(got.recomputed, wanted.recomputed)
        for one, two in ((got.hidden, wanted.hidden), *((got.taps[n], wanted.taps[n]) for n in wanted.taps)):
            assert float((one - two).abs().max() / two.abs().max()) < tolerance
        refreshed.update(got.refreshed)
        for stream in here:
            seen[stream] += 1
    assert refreshed == ({True} if method == Full() else {True, False})


@EACH
@METHODS
@pytest.mark.parametrize("size", [(84, 140), (112, 112)])  # windows of four sizes, and of one
@torch.no_grad()
def test_plain_steps_equal_the_method(visions, family, method, size):
    vision = visions[family]
    tower, videos = vision.tower(size[0] // 14, size[1] // 14), [moving(vision, 5, size, seed) for seed in range(3)]
    agree(method, method.prepare(tower, videos[0][0], 3, lambda name: None), tower, videos)


@EACH
@torch.no_grad()
def test_kernels_equal_the_method(visions, family):
    if not INTERPRETED:
        pytest.skip("runs inside test_what_needs_the_interpreter")
    vision, taps = visions[family], tuple(sorted(visions[family].tap_layers))
    tower, videos = vision.tower(6, 2), [moving(vision, 3, (84, 28), seed) for seed in range(2)]
    method = STCPublished(2)
    packed = PackedTower(packed_layers(tower), method.plan(tower), Ways(vision_kernels(), "split", "split"), taps)
    prepared = PreparedEncoder(tower, packed, method._refresh_flags, videos[0][0], 2, lambda name: None)
    agree(method, prepared, tower, videos, steps=3)


@EACH
def test_a_prepared_engine_equals_one_that_is_not(family, tmp_path):
    """Frames of the size it was prepared for, then of another one, which run as they are."""
    model = load(make_qwen_folder(tmp_path, family), device="cpu", pairs=False)
    chance = np.random.default_rng(0)
    pictures = [chance.integers(0, 256, size, dtype=np.uint8) for size in [(84, 140, 3)] * 5 + [(56, 56, 3)] * 2]
    for number in (1, 2, 4):  # some change little
        pictures[number] = np.where(chance.random((84, 140, 1)) < 0.2, pictures[number], pictures[number - 1])
    seen = []
    for prepared in (False, True):
        engine = Engine(
            model, encoder="stc_published:interval=3", compressor="identity", memory="full", passes="packed"
        )
        if prepared:
            engine.prepare(most_frames=2, most_tokens=64, picture=(84, 140))
        session = engine.open()
        flags = [session.push(Frame(image, float(at))).refreshed for at, image in enumerate(pictures)]
        assert flags == [True, False, False, True, False, True, False]
        seen.append((session.ask("what is there ?").text, session.store.export()[0]))
    assert seen[0][0] == seen[1][0]
    for name, wanted in seen[0][1].items():
        torch.testing.assert_close(seen[1][1][name], wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_filling_up_a_gated_mlp_changes_nothing(visions):
    vision = visions["qwen2_5_vl"]
    packed, module = packed_layers(vision.tower(4, 4))[0], vision.module.blocks[0]
    rows = torch.randn(5, 32)
    torch.testing.assert_close(packed.feed(rows), module.mlp(rows))


def test_an_activation_without_a_packed_form_is_refused():
    network = make_qwen_network(make_qwen_tokenizer(), "qwen3_vl")
    network.config.vision_config.hidden_act = "relu"
    with pytest.raises(ModelError, match="activation"):
        packed_layers(qwen3_vl.Vision(network).tower(4, 4))


@pytest.mark.gpu
@EACH
@torch.no_grad()
def test_graphs_equal_steps_op_by_op(family):
    """In half precision, at the real widths of heads and of the MLP, graphs and the same kernels op by op."""
    shape = SHAPES[{"qwen2_5_vl": "qwen2.5-vl-7b", "qwen3_vl": "qwen3-vl-8b"}[family]]
    assert isinstance(shape, QwenShape)
    vision = random_vision(dataclasses.replace(shape, vision_layers=9), torch.bfloat16, torch.device("cuda"))
    rows, cols = vision.patches((8 * vision.factor, 12 * vision.factor))
    tower, method = vision.tower(rows, cols), STCPublished(3)
    frames = vision.embed_patches(torch.randn(6, 3, 8 * vision.factor, 12 * vision.factor, device="cuda"))
    graphs = method.prepare(tower, frames[0], 3, lambda name: None)
    ops = PreparedEncoder(tower, graphs._packed, method._refresh_flags, frames[0], 3, lambda name: None, False)
    one, two = ([method.new_state() for _ in range(3)] for _ in range(2))
    for turn in range(4):
        batch = frames[turn : turn + 3]
        got, wanted = graphs.encode(batch, one), ops.encode(batch, two)
        assert got.recomputed is not None and wanted.recomputed is not None
        assert torch.equal(got.hidden, wanted.hidden) and torch.equal(got.recomputed, wanted.recomputed)
        assert all(torch.equal(got.taps[n], wanted.taps[n]) for n in tower.tap_layers)
    dense, plain = graphs.encode(frames[:3], [method.new_state() for _ in range(3)]), [Full().new_state()] * 3
    eager = Full().encode(tower, frames[:3], plain).hidden
    assert float((dense.hidden - eager).float().norm() / eager.float().norm()) < 0.02
