"""Vision kernels equal their plain forms: in Triton's interpreter on a CPU, compiled on a GPU. And captured steps."""

import os
import subprocess
import sys

import pytest
import torch

from onlooker.core.errors import InputError, ModelError
from onlooker.kernels.graph import CapturedStep
from onlooker.kernels.head_attention import TILES, attend_heads
from onlooker.kernels.rows import (
    Stored,
    advance,
    fill_values,
    gather_rows,
    keep_rows,
    residual_norm,
    vision_kernels,
)
from onlooker.kernels.selection import Chosen, cosine

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WHOLE, SOME, TOKENS, COUNT, LAYERS = 2, 3, 27, 7, 3
STREAMS = WHOLE + SOME
EACH_DEVICE = pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@pytest.fixture
def kernels(on):
    if on == "cpu" and not INTERPRETED:
        pytest.skip("runs inside test_in_the_interpreter")
    return vision_kernels()


@pytest.mark.skipif(INTERPRETED, reason="is the outer one")
def test_in_the_interpreter():
    """Triton reads its mode when it is first imported, so interpreted kernels have a process of their own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "-k", "cpu", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "10 passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-300:]


class Bench:
    """Random rows of some streams, and what the streams have stored, in both forms."""

    def __init__(self, on: str, dim: int = 40, dtype: torch.dtype = torch.float32) -> None:
        self.make = torch.Generator(on).manual_seed(0)
        self.on, self.dim, self.dtype = on, dim, dtype
        self.tensors = [self.random(LAYERS, TOKENS, dim) for _ in range(STREAMS)]
        addresses = torch.tensor([tensor.data_ptr() for tensor in self.tensors], device=on)
        self.stored = Stored(torch.stack(self.tensors), addresses)
        self.norm = torch.nn.LayerNorm(dim, eps=1e-6, device=on, dtype=dtype)
        self.norm.weight.data, self.norm.bias.data = self.random(dim), self.random(dim)
        self.chosen = Chosen(WHOLE, SOME, TOKENS, COUNT, torch.device(on))
        self.chosen.choose(torch.rand(SOME, TOKENS, generator=self.make, device=on), None)

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.make, device=self.on).to(self.dtype)


def close(got, wanted):
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@EACH_DEVICE
@torch.no_grad()
def test_cosine_and_choice(on, kernels):
    bench = Bench(on)
    keys, gate = bench.random(STREAMS, TOKENS, bench.dim), bench.stored.part(WHOLE, STREAMS)
    for layer in range(LAYERS):
        close([cosine(keys[WHOLE:], gate, layer, kernels)], [cosine(keys[WHOLE:], gate, layer, None)])
    scores = torch.rand(SOME, TOKENS, device=on) * 2 - 1
    scores[0] = 1.0  # all alike: the first are chosen
    scores[1, 4:20] = -0.5  # a tie across the border
    scores[2, ::3] = -0.0
    one, two = (Chosen(WHOLE, SOME, TOKENS, COUNT, torch.device(on)) for _ in range(2))
    for turn in range(2):
        one.choose(scores.roll(turn, 1), kernels)
        two.choose(scores.roll(turn, 1), None)
        for name in ("flat", "place", "index", "times"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert one.times.sum() == 2 * SOME * COUNT


@EACH_DEVICE
@torch.no_grad()
def test_rows_move_as_they_are(on, kernels):
    bench, chosen = Bench(on), Bench(on).chosen
    tokens = bench.random(STREAMS * TOKENS, bench.dim)
    assert torch.equal(gather_rows(tokens, chosen.flat, kernels), gather_rows(tokens, chosen.flat, None))
    fresh = bench.random(len(chosen.flat), 2 * bench.dim)[:, bench.dim :]
    place, values = chosen.place[WHOLE * TOKENS :], bench.stored.part(WHOLE, STREAMS)
    got, wanted = (fill_values(fresh, place, values, 2, each) for each in (kernels, None))
    assert torch.equal(got, wanted)
    rows, more = bench.random(WHOLE * TOKENS, 2 * bench.dim)[:, : bench.dim], bench.random(WHOLE * TOKENS, bench.dim)
    for extra in (None, more):
        for each in (kernels, None):
            keep_rows(rows, extra, bench.stored.part(0, WHOLE), 1, each)
        assert torch.equal(torch.stack(bench.tensors), bench.stored.stack)


@EACH_DEVICE
@pytest.mark.parametrize("all_rows", [False, True])
@torch.no_grad()
def test_residual_and_norm(on, kernels, all_rows):
    bench = Bench(on)
    tokens, flat = bench.random(STREAMS * TOKENS, bench.dim), None if all_rows else bench.chosen.flat
    branch = bench.random(len(tokens) if flat is None else len(flat), bench.dim)
    close(*(residual_norm(tokens, flat, branch, bench.norm, each) for each in (kernels, None)))


@EACH_DEVICE
@pytest.mark.parametrize("normed", [False, True])
@torch.no_grad()
def test_advance(on, kernels, normed):
    bench, norm = Bench(on), None
    norm = bench.norm if normed else None
    tokens, rows = bench.random(STREAMS * TOKENS, bench.dim), len(bench.chosen.flat)
    middle, mlp = bench.random(rows, bench.dim), bench.random(rows, bench.dim)
    close(*(advance(tokens, bench.chosen.place, middle, mlp, bench.stored, 2, norm, e) for e in (kernels, None)))


@EACH_DEVICE
@torch.no_grad()
def test_address_zero_is_no_stream(on, kernels):
    bench = Bench(on)
    nobody = Stored(addresses=torch.zeros_like(bench.stored.addresses))
    place = bench.chosen.place[WHOLE * TOKENS :]
    fresh = bench.random(len(bench.chosen.flat), bench.dim)
    filled = fill_values(fresh, place, nobody.part(WHOLE, STREAMS), 1, kernels)
    assert not filled.flatten(0, 1)[place < 0].any() and filled.flatten(0, 1)[place >= 0].any()
    keep_rows(bench.random(STREAMS * TOKENS, bench.dim), None, nobody, 1, kernels)
    keys = bench.random(STREAMS, TOKENS, bench.dim)
    assert not cosine(keys, nobody, 0, kernels).any()
    assert torch.equal(torch.stack(bench.tensors), bench.stored.stack)


@EACH_DEVICE
@pytest.mark.parametrize("head_dim", [24, 32, 72])
@torch.no_grad()
def test_split_heads(on, kernels, head_dim):
    bench, heads = Bench(on), 2
    dim = heads * head_dim
    queries, values = bench.random(2, 70, 2 * dim)[..., :dim], bench.random(2, 131, 2 * dim)[..., dim:]
    keys = bench.random(2, 131, dim)
    wanted = attend_heads(queries, keys, values, heads, head_dim**-0.5, "torch")
    for way in TILES if head_dim == 72 and on == "cpu" else ["split"]:
        close([attend_heads(queries, keys, values, heads, head_dim**-0.5, way)], [wanted])


def test_a_captured_step_refuses_what_does_not_fit():
    step = CapturedStep("double", lambda x: (x * 2,), [torch.zeros(3)])
    first = step(torch.ones(3))[0]
    assert torch.equal(first, torch.full((3,), 2.0))
    step(torch.zeros(3))
    assert torch.equal(first, torch.full((3,), 2.0)), "a result changed with a later call"
    for wrong in (torch.zeros(4), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(InputError, match="double: input 0"):
            step(wrong)


@pytest.mark.gpu
def test_a_step_that_waits_cannot_be_captured():
    with pytest.raises(ModelError, match="sum cannot be captured"):
        CapturedStep("sum", lambda x: (x * float(x.sum()),), [torch.zeros(3, device="cuda")])
    assert float(torch.ones(2, device="cuda").sum()) == 2, "the device is of no use after a failed capture"
