"""Numbers between the smallest and the largest of a group, in equal steps."""

import torch
from torch import Tensor

LARGEST = 65504.0
"""Steps and smallest numbers are kept in float16; what lies beyond its range is cut off."""


def num_groups(num_tokens: int, group: int) -> int:
    """In how many groups of at most `group` tokens, all but the last of one size, so many tokens are cut."""
    return -(-num_tokens // group)


def by_channel(states: Tensor, levels: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 `[..., tokens, channels]`, and the step and the smallest number of each channel in each group of
    tokens, float16 `[..., groups, channels]` each, of `[..., tokens, channels]`."""
    tokens = states.shape[-2]
    groups = num_groups(tokens, group)
    size = -(-tokens // groups)
    plain = states.float()
    if missing := groups * size - tokens:
        plain = torch.cat((plain, plain[..., -1:, :].expand(*plain.shape[:-2], missing, -1)), dim=-2)
    grouped = plain.unflatten(-2, (groups, size))
    step, low = _scale(grouped.amin(-2), grouped.amax(-2), levels)
    codes = _codes(grouped, step[..., None, :], low[..., None, :], levels).flatten(-3, -2)
    return codes[..., :tokens, :], step, low


def from_channels(codes: Tensor, step: Tensor, low: Tensor) -> Tensor:
    """What `by_channel` gave, as float32 numbers."""
    tokens, groups = codes.shape[-2], step.shape[-2]
    step, low = (part.float().repeat_interleave(-(-tokens // groups), -2)[..., :tokens, :] for part in (step, low))
    return codes.float() * step + low


def by_token(states: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 `[..., tokens, channels]`, and each token's step and smallest number, float16 `[..., tokens]`."""
    plain = states.float()
    step, low = _scale(plain.amin(-1), plain.amax(-1), levels)
    return _codes(plain, step[..., None], low[..., None], levels), step, low


def from_tokens(codes: Tensor, step: Tensor, low: Tensor) -> Tensor:
    """What `by_token` gave, as float32 numbers."""
    return codes.float() * step.float()[..., None] + low.float()[..., None]


def _scale(smallest: Tensor, largest: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    low = smallest.clamp(-LARGEST, LARGEST).half()
    # A little more than what was measured, so that rounding to float16 never leaves the largest number out.
    step = (largest.clamp(-LARGEST, LARGEST) - low.float()).clamp_min(0) / (levels - 1) * (1 + 2**-10)
    return step.clamp_max(LARGEST).half(), low


def _codes(plain: Tensor, step: Tensor, low: Tensor, levels: int) -> Tensor:
    whole = (plain - low.float()) / step.float().clamp_min(2.0**-24)
    return whole.round().clamp(0, levels - 1).to(torch.uint8)


def pack(codes: Tensor) -> Tensor:
    """Two codes of 4 bits in a byte: channel d and channel d + half, uint8 `[..., channels / 2]`."""
    first, second = codes.chunk(2, dim=-1)
    return first | (second << 4)


def unpack(packed: Tensor) -> Tensor:
    """The codes that `pack` put together."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)
