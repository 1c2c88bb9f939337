"""Saliency and global rows: what the tower's own attention says, behind every encoder, and only on request."""

from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
import torch
from tiny import make_folder, make_qwen_folder

from onlooker.compress import LongVLM
from onlooker.core.contracts import Compressor
from onlooker.core.errors import ModelError
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.encode import Full
from onlooker.engine import Engine
from onlooker.models import load

KINDS = ["siglip", "clip", "qwen2_5_vl", "qwen3_vl"]
ENCODERS = [
    "full",
    "stc_published:interval=3,recompute_ratio=0.25",
    "stc_cacher:interval=3",
    "stc_cacher:budget=0.5",
]
BOTH = frozenset({"saliency", "global", "pixels"})


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in ("siglip", "clip"):
        return load(make_folder(folder, tower=request.param), device="cpu")
    return load(make_qwen_folder(folder, request.param), device="cpu", pairs=False)


def clip(count, size=56):
    rng = np.random.default_rng(3)
    return [Frame(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), float(n)) for n in range(count)]


def hidden_states(model, pixels):
    """What enters each layer, and what comes out of the last, of one picture."""
    tower = model.tower(tuple(pixels.shape[1:]))
    states = [model.embed_patches(pixels)]
    for layer in tower.layers:
        normed = layer.norm(states[-1])
        attended = layer.attend(layer.queries(normed), layer.keys(normed), layer.values(normed))
        x = states[-1] + layer.out(attended)
        states.append(x + layer.mlp(x))
    return tower, states


def received_plainly(layer, hidden, asking):
    """Attention that each token gets from the first `asking` ones, through the layer's own attention: values that are 1
    for one token and 0 for all others come out as the attention on that token."""
    normed, count = layer.norm(hidden), hidden.shape[1]
    queries, keys = layer.queries(normed), layer.keys(normed)
    got = []
    for token in range(count):
        values = torch.zeros_like(keys)
        values[:, token] = 1.0
        got.append(layer.attend(queries, keys, values)[:, :asking].mean())
    return torch.stack(got)


@torch.no_grad()
def test_saliency_is_the_last_attention(model):
    (pixels,) = model.preprocess([clip(1)[0].image])
    tower, states = hidden_states(model, pixels[None])
    layer = max(n for n, each in enumerate(tower.layers) if n and each.sees_all)
    pinned = tower.pinned
    got = received_plainly(tower.layers[layer], states[layer], pinned or tower.num_tokens)[pinned:]
    if tower.raster is None:
        side = round(len(got) ** 0.5)
        half = -(-side // 2)
        wanted = torch.nn.functional.interpolate(
            got.view(1, 1, side, side), size=(half, half), mode="bilinear"
        ).flatten()
    else:
        wanted = got.view(-1, tower.group).mean(1)
    (seen,) = seen_by_a_compressor(model, "full", clip(1))
    torch.testing.assert_close(seen.extras["saliency"], wanted, rtol=1e-4, atol=1e-6)
    assert seen.extras["saliency"].std() > 1e-4, "all alike"


@torch.no_grad()
def test_global_rows_are_class_tokens_or_the_mean(model):
    (pixels,) = model.preprocess([clip(1)[0].image])
    tower, states = hidden_states(model, pixels[None])
    (seen,) = seen_by_a_compressor(model, "full", clip(1))
    if tower.pinned:
        projector = model._network.model.multi_modal_projector
        wanted = torch.cat([projector(state[:, :1]) for state in states[1:]], dim=1)
    else:
        wanted = seen.features.mean(0)[None, None]
    torch.testing.assert_close(seen.whole["global"], wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pixels_are_the_picture_under_each_token(model):
    image = clip(1)[0].image
    (seen,) = seen_by_a_compressor(model, "full", clip(1))
    side, (rows, cols) = 28, seen.grid
    assert seen.extras["pixels"].shape == (rows * cols, 3 * side * side) and image.shape[0] == rows * side
    for slot in range(rows * cols):
        row, col = divmod(slot, cols)
        under = image[row * side : (row + 1) * side, col * side : (col + 1) * side]
        assert np.array_equal(seen.extras["pixels"][slot].view(3, side, side).permute(1, 2, 0).numpy(), under)


@dataclass(frozen=True)
class Looks(Compressor):
    """Keeps everything, and shows what it saw."""

    needs = BOTH
    seen = []

    def new_state(self):
        return StreamState()

    def compress(self, tokens, state):
        self.seen.append(tokens)
        return tokens


def seen_by_a_compressor(model, encoder, frames, prepared=False):
    looks = Looks()
    looks.seen.clear()
    engine = Engine(model, encoder=encoder, compressor=looks, memory="full")
    if prepared:
        engine.prepare(most_frames=2, most_tokens=64, picture=frames[0].image.shape[:2])
    session = engine.open()
    for frame in frames:
        session.push(frame)
    return list(looks.seen)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_it_is_right_behind_every_encoder_prepared_too(model, encoder):
    """Prepared and not, the same; when everything is computed anew, that of the dense tower."""
    frames = clip(5)
    dense = seen_by_a_compressor(model, "full", frames)
    plain = seen_by_a_compressor(model, encoder, frames)
    prepared = seen_by_a_compressor(model, encoder, frames, prepared=True)
    for one, two in zip(plain, prepared, strict=True):
        torch.testing.assert_close(one.extras["saliency"], two.extras["saliency"], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(one.whole["global"], two.whole["global"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(plain[0].extras["saliency"], dense[0].extras["saliency"], rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class Segments(LongVLM):
    """LongVLM, and what it gave out."""

    given = []

    def clips(self, tokens, frames, states):
        outs = super().clips(tokens, frames, states)
        self.given.extend(outs)
        return outs


@torch.no_grad()
def test_longvlm_remembers_the_stream_by_the_towers_class_tokens(model):
    """Before every segment: a row for each layer of a tower with a class token (CLIP), else one."""
    frames, method = clip(8), Segments(frames=4, keep_ratio=0.01, global_rows=True)
    told = torch.stack([seen.whole["global"][0] for seen in seen_by_a_compressor(model, "full", frames)])
    method.given.clear()
    engine = Engine(model, encoder="full", compressor=method, memory="full")
    session = engine.open()
    for frame in frames:
        session.push(frame)
    tower = model.tower(tuple(model.preprocess([frames[0].image])[0].shape))
    assert len(method.given) == 2 and told.shape[1] == (len(tower.layers) if tower.pinned else 1)
    for number, out in enumerate(method.given):
        put = out.weight == 0
        torch.testing.assert_close(out.features[put], told[: 4 * (number + 1)].mean(0), rtol=1e-4, atol=1e-5)
        assert (out.frame[put] == 4 * number).all() and out.weight.sum() == 4 * out.grid[0] * out.grid[1]
    assert session.ask("What is there?", max_new_tokens=2).text is not None


def test_nothing_is_computed_unless_a_method_needs_it(model):
    with (
        mock.patch.object(type(model), "describe", side_effect=AssertionError),
        mock.patch.object(type(model), "taps_for", side_effect=AssertionError),
    ):
        session = Engine(model, encoder="full", compressor="stc_pruner:keep=2", memory="full").open()
        for frame in clip(2):
            session.push(frame)
    session = Engine(model, encoder="full", compressor="stc_pruner:keep=2", memory="full").open()
    session.push(clip(1)[0])


def test_what_a_model_cannot_tell_is_refused_by_name(model):
    with (
        mock.patch.object(model, "offers", frozenset({"global"})),
        pytest.raises(ModelError, match="needs pixels, saliency"),
    ):
        Engine(model, encoder="full", compressor=Looks(), memory="full")


def test_the_stock_towers_own_attention_agrees(tmp_path):
    """SigLIP's attention weights as Transformers gives them."""
    from stock_models import load_stock

    folder = make_folder(tmp_path, tower="siglip")
    model = load(folder, device="cpu")
    tower = load_stock(folder).model.vision_tower
    tower.set_attn_implementation("eager")
    (pixels,) = model.preprocess([clip(1)[0].image])
    with torch.no_grad():
        weights = tower(pixels[None], output_attentions=True).attentions[-1]
    side = round(weights.shape[-1] ** 0.5)
    square = weights.mean((1, 2)).view(1, 1, side, side)
    wanted = torch.nn.functional.interpolate(square, size=(-(-side // 2),) * 2, mode="bilinear").flatten()
    (seen,) = seen_by_a_compressor(model, "full", clip(1))
    torch.testing.assert_close(seen.extras["saliency"], wanted, rtol=1e-4, atol=1e-6)


def test_a_full_encoder_has_the_taps_that_are_asked_for(model):
    """The engine's own tower, not the model's, is tapped."""
    (pixels,) = model.preprocess([clip(1)[0].image])
    shape = tuple(pixels.shape)
    before = model.tower(shape).tap_layers
    engine = Engine(model, encoder=Full(), compressor=Looks(), memory="full")
    assert engine.eye.tower(shape).tap_layers >= before | model.taps_for(BOTH, model.tower(shape))
    assert model.tower(shape).tap_layers == before
