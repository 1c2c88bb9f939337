"""Thumbnails whole, and a few sampled tokens of every other frame (TS-LLaVA, behind the gate of the same name).

Qu et al., "TS-LLaVA: Constructing Visual Tokens through Thumbnail-and-Sampling for Training-Free Video Large Language
Models" (arXiv 2411.11066): all tokens of a picture on which frames are tiled, and a tenth of the tokens of all frames,
equally spaced. Changed: the gate `thumbnail` tiles the last frames of a stream again and again; the spaced tokens of a
frame begin at another place in every frame, so that in time all places are seen. Without the gate it is plain stride
sampling with a whole frame every so many.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from onlooker.compress._batching import Batched, alike, selected
from onlooker.core.checks import whole
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens


@dataclass
class Counted(StreamState):
    """Frames since the stream began."""

    count: int = 0


@dataclass(frozen=True)
class Thumbnail(Batched):
    """Thumbnail and sampling."""

    realises: ClassVar[tuple[str, ...]] = ("ts_llava",)
    whole_frames: ClassVar[bool] = True

    every: int = 8
    """One frame in so many is a thumbnail, and kept whole; the same number as the gate's."""
    sampled: int = 8
    """Tokens of each other frame."""

    def __post_init__(self) -> None:
        whole("every", self.every, least=1, most=1 << 20)
        whole("sampled", self.sampled, least=1, most=1 << 20)

    def less(self) -> Self | None:
        """Half of the sampled tokens; one at least."""
        return replace(self, sampled=self.sampled // 2) if self.sampled > 1 else None

    def new_state(self) -> Counted:
        """No frame yet."""
        return Counted()

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """The thumbnail, or spaced tokens, of each stream."""
        kept, numbers = list(batch), []
        for state in states:
            assert isinstance(state, Counted)
            numbers.append(state.count)
            state.count += 1
        for members in alike(batch):
            size, device = len(batch[members[0]]), batch[members[0]].features.device
            sampled = [i for i in members if numbers[i] % self.every != self.every - 1]
            if not sampled or self.sampled >= size:
                continue
            index = torch.stack([_spaced(numbers[i], size, self.sampled) for i in sampled]).to(device)
            for i, out in zip(sampled, selected(batch, sampled, index), strict=True):
                kept[i] = out
        return kept


def _spaced(number: int, size: int, count: int) -> Tensor:
    """Equally spaced places, from another one on in every frame, int64 `[count]`, ascending."""
    step = size / count
    phase = (number * 0.6180339887) % 1.0  # the golden ratio: phases spread evenly, however many frames there are
    return ((torch.arange(count) + phase) * step).long().clamp_max(size - 1)
