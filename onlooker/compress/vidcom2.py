"""The tokens least like their frame and their clip, more of frames that stand out (VidCom2).

Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models", EMNLP
2025 (arXiv 2505.14454). Tokens are reduced to the half of the channels that varies least over the clip and compared
with the clip's and with their frame's mean by a sum of Gaussians of five widths. A frame that is less like the clip
gets a larger share, by a softmax (temperature 0.01) over the frames; the tokens least like both stay, at least one a
frame. STC-Pruner is its causal sibling. Changed: the clip is a window of the stream, and equal scores are settled by
position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.compress._batching import among_best, in_steps
from onlooker.compress._clip import ClipMethod, SteppedWindows
from onlooker.compress._likeness import lengths, likeness
from onlooker.compress._steps import Kept, masked
from onlooker.core.tokens import VisualTokens

_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)
TEMPERATURE = 0.01


@dataclass(frozen=True)
class VidCom2(SteppedWindows, ClipMethod):
    """Frame and token uniqueness over a window."""

    def step(self, tokens: VisualTokens, streams: int, frames: int, past: tuple[Tensor, ...]) -> Kept:
        """Of every frame, as many tokens as its share, those that stand out."""
        windows = tokens.features.detach().unflatten(0, (streams, -1))
        spread = windows.float().var(1, correction=0)
        half = torch.full((streams,), max(1, windows.shape[2] // 2), device=spread.device)
        # Channels that vary are silent instead of left out: rows stay as they lie.
        some = windows * among_best(-spread, half)[:, None]
        each = some.unflatten(1, (frames, -1)).flatten(0, 1)
        means = (each / lengths(each).clamp_min(1e-12)[:, :, None]).mean(1).unflatten(0, (streams, frames))
        middle = means.mean(1, keepdim=True)
        to_frame = _square(likeness(each, means.flatten(0, 1)[:, None]).unflatten(0, (streams, frames)), means)
        to_clip = _square(likeness(some, middle).unflatten(1, (frames, -1)), middle)
        of_clip, of_frame = _gaussians(torch.stack([to_clip, to_frame]))
        share = torch.softmax(-of_clip.mean(2) / TEMPERATURE, dim=1)
        ratio = (self.keep_ratio * (1 + share - share.mean(1, keepdim=True))).clamp_max(1)
        count = (ratio * each.shape[1]).round().clamp_min(1)
        kept = among_best(-in_steps(of_clip + of_frame).flatten(0, 1), count.flatten())
        return masked(tokens, kept.view(streams, -1))


def _square(cosine: Tensor, anchor: Tensor) -> Tensor:
    """The square of the distance of tokens of unit length and anchors (`[windows, frames or 1, dim]`), by their cosines
    (`[windows, frames, tokens]`)."""
    length = lengths(anchor)[:, :, None]
    return 1 + length * length - 2 * cosine * length


def _gaussians(square: Tensor) -> Tensor:
    """Likeness by the square of a distance, summed over five widths."""
    return torch.stack([torch.exp(square / (-2 * scale)) for scale in _SCALES]).sum(0)
