"""The promises of codecs: what they say of their parts is so, and what comes back is near what was given."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LAYERS, HEADS, DIM = 3, 2, 16
Point = Callable[[Any, Any], None]


def states(seed: int, num_tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Keys whose channels differ in size and lie off zero, as keys do, and values."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, LAYERS, HEADS, num_tokens, DIM, generator=generator)
    sizes = torch.logspace(-1, 1, DIM)
    return (keys * sizes + 3 * sizes.flip(0)).to(dtype), values.to(dtype)


def again(method: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Encoded, kept elsewhere as a store does, and decoded."""
    parts = {name: part.clone() for name, part in method.encode(keys, values).items()}
    return method.decode(parts, keys.dtype)


def codec_parts_are_as_told(method: Any, opened: Any) -> None:
    """Names, shapes and types are known beforehand, and so are the bytes."""
    for num_tokens in (1, 5, 64, 65, 200):
        for dtype in (torch.float32, torch.bfloat16):
            parts = method.encode(*states(0, num_tokens, dtype))
            told = method.parts(HEADS, num_tokens, DIM, dtype)
            found = {name: (tuple(part.shape[1:]), part.dtype) for name, part in parts.items()}
            assert found == told, f"{num_tokens} tokens: {found} and not {told}"
            size = sum(part.numel() * part.element_size() for part in parts.values())
            assert method.num_bytes(LAYERS, HEADS, num_tokens, DIM, dtype) == size


def codec_comes_back_near(method: Any, opened: Any) -> None:
    """A plain codec gives back every bit, another most of what was there; keys by channel, values by token."""
    for num_tokens in (1, 7, 60, 130):
        keys, values = states(1, num_tokens)
        for name, given, got, axis in zip("kv", (keys, values), again(method, keys, values), (-2, -1), strict=True):
            assert got.shape == given.shape and got.dtype == given.dtype
            if method.plain:
                assert torch.equal(got, given)
                continue
            error = (got - given).pow(2).mean(axis).sqrt()
            scale = given.pow(2).mean(axis).sqrt()
            # One bit of a normal number is off by 0.6 of its size.
            most = 1.0 if method.coarse else 0.2
            assert (error <= most * scale + 1e-6).all(), f"{name}: off by {(error / scale).max():.2f} of its size"


def codec_blocks_are_apart(method: Any, opened: Any) -> None:
    """Blocks that are encoded, or decoded, together or layer by layer are as they would be alone."""
    blocks = [states(seed, 9) for seed in range(3)]
    alone = [method.encode(*block) for block in blocks]
    stacked = {name: torch.stack([parts[name] for parts in alone]) for name in alone[0]}
    together = method.decode(stacked, torch.float32)
    for n, parts in enumerate(alone):
        for got, wanted in zip(together, method.decode(parts, torch.float32), strict=True):
            assert torch.equal(got[n], wanted)
        some = method.decode({name: part[1:2] for name, part in parts.items()}, torch.float32)
        assert all(torch.equal(a[0], b[n, 1]) for a, b in zip(some, together, strict=True))


def codec_odd_blocks(method: Any, opened: Any) -> None:
    """Rows that are all alike, zeros, one giant number, and numbers beyond float16."""
    keys, values = states(2, 6)
    for given in (torch.zeros_like(keys), torch.full_like(keys, 7.5), keys * 1e6, keys * 1e-9):
        for got in again(method, given, values):
            assert torch.isfinite(got).all()
    same = torch.full_like(keys, 7.5)
    torch.testing.assert_close(again(method, same, same)[0], same, rtol=0.04, atol=0)
    giant = keys.clone()
    giant[..., 2, 3] = 1000.0
    got, _ = again(method, giant, values)
    assert (got[..., 2, 3] - 1000).abs().max() < 40


CODEC: tuple[Point, ...] = (codec_parts_are_as_told, codec_comes_back_near, codec_blocks_are_apart, codec_odd_blocks)
