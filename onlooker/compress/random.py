"""Keep tokens drawn at random, the same ones in every run."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.compress._keep import Budgeted, best
from onlooker.compress._steps import Kept, Stepped, chosen
from onlooker.core.errors import InputError
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

_LOW_32_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class Random(Budgeted, Stepped):
    """A fair draw without replacement, made from (seed, frame number, place in the grid) and nothing else.

    Every token's lot is a hash of the three, computed where the tokens lie. There is no generator to share, so the
    draw is the same on every device, in any batch and after any pause.
    """

    seed: int = 0
    """Number that the draw starts from, 0 to 2**32 - 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed <= _LOW_32_BITS:
            raise InputError("a seed is out of range", given=f"seed={self.seed}", do="give 0 to 2**32 - 1")

    def new_state(self) -> StreamState:
        """Nothing to remember: the frame number is on the tokens."""
        return StreamState()

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """The tokens of each frame with the highest lots."""
        frame, slot = tokens.frame.view(streams, -1), tokens.slot.view(streams, -1)
        keep = self.num_kept(frame.shape[1])
        if keep == frame.shape[1]:
            return Kept(tokens)
        seeded = _mix(frame + _mix(torch.full_like(frame[:1, :1], self.seed)))
        return chosen(tokens, best(_mix(seeded + slot), keep))


def _mix(number: Tensor) -> Tensor:
    """The finalizer of MurmurHash3 for 32 bits, in int64 (products wrap, and only the low half is kept)."""
    number = number & _LOW_32_BITS
    number = (number ^ (number >> 16)) * 0x85EBCA6B & _LOW_32_BITS
    number = (number ^ (number >> 13)) * 0xC2B2AE35 & _LOW_32_BITS
    return number ^ (number >> 16)
