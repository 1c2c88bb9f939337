"""Kernels of towers with rotary positions, windows, gates and merge blocks equal their plain forms."""

import os
import subprocess
import sys

import pytest
import torch

from onlooker.kernels.deviation import advance
from onlooker.kernels.gated import gated_rows
from onlooker.kernels.rotary import compare_keys, turn_rows
from onlooker.kernels.rows import RootMeanSquare, Stored, ValueRows, residual_norm, vision_kernels
from onlooker.kernels.selection import Chosen, cosine
from onlooker.kernels.window_attention import WindowAttention, WindowTable

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WHOLE, SOME, TOKENS, COUNT, GROUP, LAYERS, HEADS = 1, 2, 24, 8, 4, 2, 3
STREAMS = WHOLE + SOME
EACH_DEVICE = pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
HEAD_DIMS = pytest.mark.parametrize("head_dim", [16, 24, 72, 80])


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
    assert "11 passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-300:]


class Bench:
    """Random rows of some streams, angles, and references in both forms."""

    def __init__(self, on: str, head_dim: int = 24) -> None:
        self.make, self.on, self.dim = torch.Generator(on).manual_seed(0), on, HEADS * head_dim
        turn = 6 * torch.rand(TOKENS, head_dim // 2, generator=self.make, device=on)
        self.angles = turn.cos(), turn.sin()
        self.tensors = [self.random(LAYERS, TOKENS, self.dim) for _ in range(STREAMS)]
        addresses = torch.tensor([tensor.data_ptr() for tensor in self.tensors], device=on)
        self.stored = Stored(torch.stack(self.tensors), addresses)
        self.chosen = Chosen(WHOLE, SOME, TOKENS, COUNT, torch.device(on), GROUP)
        self.chosen.choose(torch.rand(SOME, TOKENS, generator=self.make, device=on), None)

    def others(self) -> Stored:
        """What the partly computed streams have stored."""
        return self.stored.part(WHOLE, STREAMS)

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.make, device=self.on)


def close(got, wanted):
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@EACH_DEVICE
@HEAD_DIMS
@torch.no_grad()
def test_keys_are_compared_and_rows_turned(on, kernels, head_dim):
    bench = Bench(on, head_dim)
    keys, gate = bench.random(STREAMS, TOKENS, bench.dim), bench.others()
    close(*(compare_keys(keys, bench.angles, WHOLE, gate, 1, each) for each in (kernels, None)))
    turned, nothing = compare_keys(keys, bench.angles, WHOLE, None, 1, kernels)
    assert nothing is None
    close([turned], [turn_rows(keys.flatten(0, 1), None, bench.angles, None).view_as(keys)])
    close([turned.norm(dim=-1)], [keys.norm(dim=-1)])
    queries = bench.random(len(bench.chosen.flat), 2 * bench.dim)[:, bench.dim :]
    close(*([turn_rows(queries, bench.chosen.flat, bench.angles, each)] for each in (kernels, None)))
    assert turn_rows(queries, bench.chosen.flat, None, kernels) is queries
    nobody = Stored(addresses=torch.zeros(SOME, dtype=torch.int64, device=on))
    unlike = compare_keys(keys, bench.angles, WHOLE, nobody, 0, kernels)[1]
    assert unlike is not None and not unlike.any()
    plain = compare_keys(keys, None, WHOLE, gate, 1, kernels)
    assert plain[0].data_ptr() == keys.data_ptr()
    close([plain[1]], [cosine(keys[WHOLE:], gate, 1, None)])


@EACH_DEVICE
@torch.no_grad()
def test_neighbours_are_chosen_together(on, kernels):
    scores = torch.rand(SOME, TOKENS, device=on) * 2 - 1
    scores[1, 8:] = 0.25  # a tie: the first are chosen
    one, two = (Chosen(WHOLE, SOME, TOKENS, COUNT, torch.device(on), GROUP) for _ in range(2))
    for turn in range(2):
        one.choose(scores.roll(GROUP * turn, 1), kernels)
        two.choose(scores.roll(GROUP * turn, 1), None)
        for name in ("flat", "place", "index", "times"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name
    blocks = one.index.view(SOME, -1, GROUP)
    assert torch.equal(blocks, blocks[..., :1] + torch.arange(GROUP, device=on)) and not (blocks[..., 0] % GROUP).any()


@EACH_DEVICE
@torch.no_grad()
def test_norms_without_a_mean(on, kernels):
    bench = Bench(on)
    norm = RootMeanSquare(bench.random(bench.dim), 1e-6)
    tokens, branch = bench.random(2, STREAMS * TOKENS, bench.dim)
    close([norm(tokens)], [torch.nn.functional.rms_norm(tokens, (bench.dim,), norm.weight, norm.eps)])
    close(*(residual_norm(tokens, branch, norm, each) for each in (kernels, None)))
    # The same norm at the end of a layer of which some streams compute some tokens.
    (middle, mlp), results = bench.random(2, len(bench.chosen.flat), bench.dim), []
    for each in (kernels, None):
        deviation = tokens[: SOME * TOKENS].clone()
        normed = advance(deviation, bench.chosen, middle, mlp, bench.stored, 0, norm, each)
        results.append((deviation, normed))
    close(*results)


@EACH_DEVICE
@torch.no_grad()
def test_gated_rows(on, kernels):
    rows = Bench(on).random(5, 2 * 1100)
    close([gated_rows(rows, kernels)], [gated_rows(rows, None)])


@EACH_DEVICE
@HEAD_DIMS
@torch.no_grad()
def test_attention_in_windows(on, kernels, head_dim):
    """Of all tokens, and of chosen ones with the reference's values for the others; windows equal a mask."""
    bench, number = Bench(on, head_dim), window_numbers(on)
    within, chosen = WindowAttention(WindowTable.of(number), HEADS, 0.3), bench.chosen
    rows = bench.random(STREAMS * TOKENS, 3 * bench.dim).split(bench.dim, dim=1)
    queries, keys, values = (part.unflatten(0, (STREAMS, TOKENS)) for part in rows)
    wanted = masked(queries, keys, values, number)
    for each in (kernels, None):
        close([within.whole(queries, keys, values, each)], [wanted])
    asking = bench.random(SOME, COUNT, 2 * bench.dim)[..., bench.dim :]
    mixed = ValueRows(bench.random(len(chosen.flat), 2 * bench.dim)[:, : bench.dim], chosen.rows, bench.others(), 1)
    where = chosen.index[:, :, None].expand_as(asking)
    spread = torch.zeros_like(keys[WHOLE:]).scatter(1, where, asking)
    wanted = masked(spread, keys[WHOLE:], mixed.fill(None), number).gather(1, where)
    for each in (kernels, None):
        close([within.some(asking, keys[WHOLE:], mixed, chosen, each)], [wanted])
    nobody = ValueRows(mixed.fresh, mixed.place, Stored(addresses=torch.zeros(SOME, dtype=torch.int64, device=on)), 1)
    assert within.some(asking, keys[WHOLE:], nobody, chosen, kernels).isfinite().all()


def masked(queries, keys, values, number):
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (queries, keys, values))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=number[:, None] == number, scale=0.3)
    return attended.transpose(1, 2).flatten(2)


def window_numbers(on):
    """Windows of 18, 4 and 2 tokens, each in several runs."""
    return torch.tensor([0] * 6 + [1] * 2 + [0] * 6 + [1] * 2 + [0] * 6 + [2] * 2, device=on)
