"""What a Cacher spends on frames and how far off it is, counted beside it: for tables and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onlooker.core.contracts import Encoded, EncoderAccelerator, VisionTower
from onlooker.core.state import StreamState
from onlooker.encode._cost import dense_flop, rows_flop, selective_flop
from onlooker.encode.full import Full

SO400M = VisionTower([], 729, 1152, mlp_dim=4304)
"""The tower whose arithmetic is counted."""


@dataclass
class Tally:
    """What an encoder spent and how far off it was, frame by frame."""

    spent: list[tuple[bool, float]] = field(default_factory=list)
    """Is it a stream's first frame, and its arithmetic as a share of dense."""
    errors: list[float] = field(default_factory=list)
    """Relative error of the tower's output, of frames after the first."""
    refreshed: int = 0

    def summary(self) -> dict[str, float]:
        """Means."""
        later = [share for first, share in self.spent if not first]
        return {
            "arithmetic": float(np.mean([share for _, share in self.spent])),
            "arithmetic_after_first": float(np.mean(later)) if later else 1.0,
            "error": float(np.mean(self.errors)) if self.errors else 0.0,
            "refreshed": self.refreshed / max(1, len(self.spent)),
            "frames": len(self.spent),
        }


@dataclass(frozen=True)
class Counted(EncoderAccelerator):
    """An encoder, with a tally of its work; as long as there are any, streams begin with the states in `begun`."""

    method: EncoderAccelerator
    tally: Tally
    begun: list[StreamState] = field(default_factory=list)
    compare: bool = True

    def new_state(self) -> StreamState:
        """The method's own."""
        return self.begun.pop(0) if self.begun else self.method.new_state()

    @torch.no_grad()
    def encode(self, tower: VisionTower, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """As the method does."""
        new = [_is_new(state) for state in states]
        encoded = self.method.encode(tower, hidden, states)
        shares = [
            1.0 if flag else self._share(tower, state) for flag, state in zip(encoded.refreshed, states, strict=True)
        ]
        self.tally.spent += list(zip(new, shares, strict=True))
        self.tally.refreshed += sum(encoded.refreshed)
        if self.compare:
            dense = Full().encode(tower, hidden, states).hidden
            off = (encoded.hidden - dense).flatten(1).norm(dim=1) / dense.flatten(1).norm(dim=1)
            self.tally.errors += [error for error, first in zip(off.tolist(), new, strict=True) if not first]
        return encoded

    def _share(self, tower: VisionTower, state: Any) -> float:
        """Of a frame that was not computed whole, at the sizes of SigLIP-so400m."""
        work, spent = getattr(state, "work", None), getattr(self.method, "spent", None)
        if spent is not None:
            return float(spent(SO400M, state))
        if work is not None:
            return rows_flop(SO400M, *(share * SO400M.num_tokens for share in work.tolist())) / dense_flop(SO400M)
        count: Any = getattr(self.method, "recompute_ratio", 1.0)
        return selective_flop(SO400M, int(count * SO400M.num_tokens)) / dense_flop(SO400M)


def _is_new(state: Any) -> bool:
    return not getattr(state, "age", 1)
