"""Blocks that come in one launch are those that come one copy at a time."""

import os

import pytest
import torch

from onlooker.core import registry
from onlooker.core.contracts import ModelSpec
from onlooker.kernels.ranges import range_kernels
from onlooker.kvstore.coded import Coded, park, room
from onlooker.kvstore.fetching import Fetch, Lent

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LAYERS, HEADS, DIM = 3, 2, 16


def spec_on(device: str) -> ModelSpec:
    """A small model's sizes."""
    return ModelSpec(
        name="small", hidden_dim=64, num_layers=LAYERS, num_query_heads=4, num_kv_heads=HEADS, head_dim=DIM,
        max_positions=4096, dtype=torch.bfloat16, device=torch.device(device),
    )  # fmt: skip


def on_the_device(spec: ModelSpec, parked: Coded) -> Coded:
    """The same block in the device's memory."""
    block = room(spec, parked.codec, parked.num_tokens, spec.device)
    block.fill(parked.parts)
    return block


@pytest.mark.parametrize("on", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("codec", ["bf16", "int8", "int4:group=4", "vidkv"])
@pytest.mark.parametrize("picked", [slice(1, 2), slice(0, LAYERS)], ids=["one layer", "all layers"])
def test_one_launch_brings_the_same(on, codec, picked):
    """Rows of an arena, blocks of other sizes in the host's memory and on the device, neighbours and not."""
    if on == "cpu" and not INTERPRETED:
        pytest.skip("runs inside test_in_the_interpreter")
    spec, chance = spec_on(on), torch.Generator().manual_seed(0)

    def some(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (LAYERS, HEADS, tokens, DIM)
        keys, values = (torch.randn(shape, generator=chance).bfloat16().to(on) for _ in range(2))
        return keys, values

    kind, arena, told = registry.make("codec", codec), some(40), []
    counts = (5, 7, 7, 7, 5, 9, 7)
    blocks = [park(spec, kind, *some(count)) for count in counts]
    blocks[3] = on_the_device(spec, blocks[3])
    kernels = range_kernels(spec.device)
    assert kernels is not None
    for how in (None, kernels):
        keys, values = (torch.full((picked.stop - picked.start, HEADS, 70, DIM), 7.0, dtype=spec.dtype) for _ in "kv")
        keys, values = keys.to(on), values.to(on)
        lent = Lent()
        fetch = Fetch(picked, LAYERS, (keys, values), how, lent)
        fetch.rows(arena[0][:, :, 3:14], arena[1][:, :, 3:14], slice(0, 11))
        at = 11
        for number, (block, count) in enumerate(zip(blocks, counts, strict=True)):
            fetch.block(block, slice(at, at + count))
            at += count + 2 * (number == 1)
        fetch.run()
        lent.end()
        told.append((keys.cpu(), values.cpu()))
    for plain, fast in zip(*told, strict=True):
        assert torch.equal(plain, fast)
        assert (fast[:, :, 23:25] == 7).all() and (fast[:, :, at:] == 7).all(), "what is not asked for stays"
