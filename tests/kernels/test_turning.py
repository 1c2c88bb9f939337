"""Keys turned by a step in one launch, against plain PyTorch."""

import os

import pytest
import torch
from torch import Tensor

from onlooker.kernels.turning import FEW, MOST, has_kernels
from onlooker.kvstore.rotation import Turning, rotate, spread

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_in_the_interpreter")
STEPS = (0, 1, 58, FEW - 1, FEW, 1_000_003, MOST - 1)
DTYPES = (torch.float32, torch.bfloat16)


def make_turning(device: str, dim: int, scale: float = 1.0) -> Turning:
    """An exact rotary on three axes, as a model's is; one with a scale scales what it rotates."""
    frequencies = (10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) * 2 / dim)).repeat(2).to(device)
    axis = (torch.arange(dim // 2) % 3).repeat(2).to(device)

    def rotary(positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions.index_select(0, axis).T * frequencies
        return angles.cos().float() * scale, angles.sin().float() * scale

    return Turning(rotary, 3, torch.device(device))


def check(device: str, step: int, dtype: torch.dtype, dim: int) -> None:
    turning = make_turning(device, dim, scale=1.5)
    whole = torch.randn(2, 3, 40, dim, generator=torch.Generator().manual_seed(step)).to(device, dtype)
    for keys in (whole[:, :, 5:24], whole[:, :, :1], whole):
        wanted = rotate(keys, *turning(spread([(step, step, step)], [keys.shape[2]], keys.device)))
        got = turning.turned([keys], [(step, step, step)])
        assert got.dtype == dtype and got.is_contiguous()
        # The sum of two angles of the tables is off by less than what float32 keeps of a cosine.
        assert torch.allclose(got.float(), wanted.float(), atol=2e-6 if dtype == torch.float32 else 0.04, rtol=0)
        if dtype == torch.bfloat16 and device == "cuda":  # Triton's interpreter cuts off instead of rounding
            assert (got != wanted).float().mean() < 0.01


@needs_interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("step", STEPS)
def test_a_turn_in_one_launch_is_the_plain_one(step, dtype):
    check("cpu", step, dtype, 16)


@needs_interpreter
def test_only_what_the_tables_hold_is_taken_from_them():
    turning = make_turning("cpu", 16)
    keys = torch.randn(1, 2, 5, 16)
    for steps in [[(MOST, MOST, MOST)], [(3, 4, 4)], [(-1, -1, -1)]]:
        wanted = rotate(keys, *turning(spread(steps, [5], keys.device)))
        assert torch.equal(turning.turned([keys], steps), wanted)
    two = turning.turned([keys, keys], [(1, 1, 1), (7, 7, 7)])
    assert torch.allclose(two, torch.cat([turning.turned([keys], [(n, n, n)]) for n in (1, 7)], dim=2), atol=1e-6)
    assert not has_kernels(torch.device("cpu"), 24) and has_kernels(torch.device("cpu"), 16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("step", STEPS)
def test_a_compiled_turn_is_the_plain_one(step, dtype):
    check("cuda", step, dtype, 128)
