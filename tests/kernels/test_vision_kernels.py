"""Vision kernels equal their plain forms: in Triton's interpreter on a CPU, compiled on a GPU. And captured steps."""

import gc
import os
import subprocess
import sys
import warnings

import pytest
import torch

from onlooker.core.errors import InputError, ModelError
from onlooker.kernels import graph
from onlooker.kernels.deviation import add_branch, advance, enter, everywhere
from onlooker.kernels.graph import CapturedStep
from onlooker.kernels.head_attention import IN_PLACE, WAYS, attend_heads, attend_in_place
from onlooker.kernels.rows import Stored, ValueRows, gather_rows, keep_rows, residual_norm, vision_kernels
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
    assert "17 passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-300:]


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

    def value_rows(self, layer: int, stored: Stored | None = None) -> ValueRows:
        fresh = self.random(len(self.chosen.flat), 2 * self.dim)[:, self.dim :]
        return ValueRows(fresh, self.chosen.rows, (stored or self.stored).part(WHOLE, STREAMS), layer)

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
    scores[0] = 1.0  # none changed: none is chosen
    scores[0, ::2] += 2e-7
    scores[1, 4:20] = -0.5  # a tie across the border
    scores[2, ::3] = -0.0
    one, two = (Chosen(WHOLE, SOME, TOKENS, COUNT, torch.device(on)) for _ in range(2))
    for turn in range(2):
        one.choose(scores.roll(turn, 1), kernels)
        two.choose(scores.roll(turn, 1), None)
        for name in ("flat", "place", "index", "times"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert one.times.sum(1).tolist() == [0, 2 * COUNT, 2 * COUNT]
    assert (one.rows.view(SOME, TOKENS) >= 0).sum(1).tolist() == [0, COUNT, COUNT]
    every = Chosen(WHOLE, SOME, TOKENS, TOKENS, torch.device(on))
    every.choose(scores, kernels)
    assert every.rows.sort().values.tolist() == list(range(every.first, STREAMS * TOKENS)), "a budget of all is all"


@EACH_DEVICE
@torch.no_grad()
def test_rows_move_as_they_are(on, kernels):
    bench, chosen = Bench(on), Bench(on).chosen
    tokens = bench.random(STREAMS * TOKENS, bench.dim)
    assert torch.equal(gather_rows(tokens, chosen.flat, kernels), gather_rows(tokens, chosen.flat, None))
    values = bench.value_rows(2)
    assert torch.equal(values.fill(kernels), values.fill(None))
    rows, more = bench.random(WHOLE * TOKENS, 2 * bench.dim)[:, : bench.dim], bench.random(WHOLE * TOKENS, bench.dim)
    into, other = bench.stored.part(0, WHOLE), bench.stored.part(WHOLE, 2 * WHOLE)
    for kept, places in (((rows,), (into,)), ((rows + 1, more), (into, other))):
        for each in (kernels, None):
            keep_rows(kept, places, 1, each)
        assert torch.equal(torch.stack(bench.tensors), bench.stored.stack)


@EACH_DEVICE
@pytest.mark.parametrize("tokens, group", [(729, 1), (300, 1), (520, 4)])
@torch.no_grad()
def test_choice_in_many_programs(on, kernels, tokens, group):
    """More tokens than one program ranks, and than it compares with at a time; some of them tied."""
    count = tokens // group // 4 * group
    # Eighths, whose means are exact in any order of summing.
    scores = (torch.rand(SOME, tokens, generator=torch.Generator().manual_seed(0)) * 800).round().to(on) / 8 - 50
    one, two = (Chosen(WHOLE, SOME, tokens, count, torch.device(on), group) for _ in range(2))
    source = torch.rand(STREAMS * tokens, 300, device=on)
    picked = [chosen.choose(scores, each, source) for chosen, each in ((one, kernels), (two, None))]
    assert torch.equal(*picked)
    for name in ("flat", "place", "index", "times"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert all(len(row.unique()) == count for row in one.index)


@EACH_DEVICE
@torch.no_grad()
def test_residual_and_norm(on, kernels):
    bench = Bench(on)
    tokens, branch = (bench.random(STREAMS * TOKENS, bench.dim) for _ in range(2))
    close(*(residual_norm(tokens, branch, bench.norm, each) for each in (kernels, None)))


@EACH_DEVICE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("last", [False, True])
@torch.no_grad()
def test_deviations_through_a_layer(on, kernels, last, dtype):
    """Kernels and plain forms leave the same behind, bit by bit but for norms; and stale tokens are not touched."""
    bench, norm = Bench(on, dtype=dtype), None
    # One stream with fewer changed tokens than there are rows.
    scores = torch.rand(SOME, TOKENS, generator=bench.make, device=on)
    scores[1, 3:] = 1.0
    bench.chosen.choose(scores, None)
    hidden, rows = bench.random(STREAMS, TOKENS, bench.dim), len(bench.chosen.flat)
    branch, mlp = bench.random(rows, bench.dim), bench.random(rows, bench.dim)
    norm, results = None if last else bench.norm, []
    for each in (kernels, None):
        apart, normed = enter(hidden, bench.chosen, bench.stored, bench.norm, each)
        begun = apart.clone()
        made = add_branch(apart, bench.chosen, branch, bench.stored, 0, bench.norm, each)
        after = advance(apart, bench.chosen, made[0], mlp, bench.stored, 0, norm, each)
        assert (after is None) == last
        results.append((apart, made[0], everywhere(apart, bench.chosen, bench.stored, 1, each)))
        results.append((normed, made[1], *([] if after is None else [after])))
        stale = bench.chosen.rows < 0
        assert torch.equal(apart[stale], begun[stale]) and not torch.equal(apart[~stale], begun[~stale])
    assert all(torch.equal(one, two) for one, two in zip(results[0], results[2], strict=True))
    rounding = 1e-5 if dtype is torch.float32 else 4e-3
    for one, two in zip(results[1], results[3], strict=True):
        torch.testing.assert_close(one, two, rtol=rounding, atol=rounding)
    assert torch.equal(torch.stack(bench.tensors), bench.stored.stack)
    assert torch.equal(bench.stored.stack[:WHOLE, 0], hidden[:WHOLE])


@EACH_DEVICE
@torch.no_grad()
def test_address_zero_is_no_stream(on, kernels):
    bench = Bench(on)
    nobody = Stored(addresses=torch.zeros_like(bench.stored.addresses))
    place = bench.chosen.rows
    filled = bench.value_rows(1, nobody).fill(kernels)
    assert not filled.flatten(0, 1)[place < 0].any() and filled.flatten(0, 1)[place >= 0].any()
    rows = bench.random(STREAMS * TOKENS, bench.dim)
    keep_rows([rows, rows], [nobody, nobody], 1, kernels)
    keys = bench.random(STREAMS, TOKENS, bench.dim)
    assert not cosine(keys, nobody, 0, kernels).any()
    apart, _ = enter(keys, bench.chosen, nobody, bench.norm, kernels)
    assert torch.equal(apart, keys[WHOLE:].flatten(0, 1))
    middle = bench.random(len(bench.chosen.flat), bench.dim)
    advance(apart, bench.chosen, middle, middle, nobody, 0, bench.norm, kernels)
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
    close([attend_heads(queries, keys, values, heads, head_dim**-0.5, "split")], [wanted])


@EACH_DEVICE
@pytest.mark.parametrize("head_dim, tokens", [(24, 27), (32, 128), (72, 131)])
@torch.no_grad()
def test_split_heads_over_values_in_place(on, kernels, head_dim, tokens):
    """Streams of whole frames come first in the list of fresh rows; one stream has no reference."""
    heads, streams, count = 2, 3, 70 if tokens > 70 else 7
    dim = heads * head_dim
    bench = Bench(on, dim)
    stored = [bench.random(LAYERS, tokens, dim) for _ in range(streams)]
    addresses = torch.tensor([0, *(tensor.data_ptr() for tensor in stored[1:])], device=on)
    stack = torch.stack([torch.zeros_like(stored[0]), *stored[1:]])
    chosen = Chosen(1, streams, tokens, count, torch.device(on))
    chosen.choose(torch.rand(streams, tokens, generator=bench.make, device=on), None)
    rows = bench.random(tokens + streams * count, 2 * dim)
    queries, keys = rows[tokens:, :dim].unflatten(0, (streams, count)), bench.random(streams, tokens, dim)
    values = ValueRows(rows[:, dim:], chosen.rows, Stored(stack, addresses), 2)
    wanted = attend_heads(queries, keys, values.fill(None), heads, head_dim**-0.5, "torch")
    for way in IN_PLACE if head_dim == 72 else ["in_place"]:
        close([attend_in_place(queries, keys, values, heads, head_dim**-0.5, way)], [wanted])
    with pytest.raises(ModelError, match="16 bytes"):
        attend_in_place(queries, keys, values, dim // 2, 1.0, "in_place")


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim, tokens, count", [(72, 729, 182), (80, 1024, 256), (64, 576, 144)])
@torch.no_grad()
def test_heads_in_half_precision_at_real_sizes(head_dim, tokens, count):
    """Matrix units take other paths than float32, and full tiles other ones than small frames."""
    streams, heads, dim, scale, on = 4, 16, 16 * head_dim, head_dim**-0.5, torch.device("cuda")
    make = torch.Generator(on).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=make, device=on).bfloat16()

    stored, keys = random(streams, 3, tokens, dim), random(streams, tokens, dim)
    addresses = torch.tensor([each.data_ptr() for each in stored], device=on)
    chosen = Chosen(0, streams, tokens, count, on)
    for turn in range(5):
        chosen.choose(torch.rand(streams, tokens, generator=make, device=on), None)
        rows = random(streams * count, 2 * dim)
        queries = rows[:, :dim].unflatten(0, (streams, count))
        values = ValueRows(rows[:, dim:], chosen.rows, Stored(stored, addresses), turn % 3)
        filled = values.fill(None)
        wanted = attend_heads(queries.float(), keys.float(), filled.float(), heads, scale, "torch")
        answers = {way: attend_in_place(queries, keys, values, heads, scale, way) for way in IN_PLACE}
        answers |= {way: attend_heads(queries, keys, filled, heads, scale, way) for way in WAYS}
        for way, answer in answers.items():
            error = float((answer.float() - wanted).norm() / wanted.norm())
            assert error < 1e-2, f"{way}: {error} in turn {turn}"


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
    assert float(torch.rand(2, device="cuda").sum()) < 2, "the device is of no use after a failed capture"


@pytest.mark.gpu
def test_a_step_without_work_runs_as_it_is():
    """The library warns of a graph in which nothing was launched."""
    step = CapturedStep("nothing", lambda x, y: (x,), [torch.zeros(3, device="cuda"), torch.zeros(2, device="cuda")])
    ones = torch.ones(3, device="cuda")
    assert torch.equal(step(ones, torch.zeros(2, device="cuda"))[0], ones)
    twice = CapturedStep("double", lambda x: (x * 2,), [torch.zeros(3, device="cuda")])
    assert torch.equal(twice(ones)[0], 2 * ones), "what is captured behind it is of no use"


@pytest.mark.gpu
def test_a_step_that_is_garbage_does_not_end_a_capture():
    old: list[object] = [CapturedStep("double", lambda x: (x * 2,), [torch.zeros(3, device="cuda")])]
    old.append(old)
    del old

    def three_times(x):
        assert len([[number] for number in range(5000)]) == 5000, "so many containers call for a look at garbage"
        return (x * 3,)

    thrice = CapturedStep("thrice", three_times, [torch.zeros(3, device="cuda")])
    ones = torch.ones(3, device="cuda")
    assert torch.equal(thrice(ones)[0], 3 * ones)


def test_garbage_waits_for_a_capture():
    class Told:
        def __del__(self):
            gone.append(1)

    gone: list[int] = []
    with graph._collecting_nothing():
        told = Told()
        told.itself = told  # pyright: ignore[reportAttributeAccessIssue]
        del told
        kept = [[number] for number in range(5000)]
        assert not gone and not gc.isenabled()
    assert gc.isenabled() and len(kept) == 5000
    gc.collect()
    assert gone == [1]


def test_other_warnings_of_a_capture_go_on():
    with pytest.warns(UserWarning, match="something else"), graph._noting_empty() as empty:
        warnings.warn("The CUDA Graph is empty. This usually means ...", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert len(empty) == 1
