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
from torch.nn.functional import normalize

from onlooker.compress._batching import among_best, in_steps
from onlooker.compress._clip import ClipMethod, SteppedWindows
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
        steady = windows.float().var(1, correction=0).argsort(dim=1, stable=True)[:, : max(1, windows.shape[2] // 2)]
        some = torch.stack([window.index_select(1, channels) for window, channels in zip(windows, steady, strict=True)])
        unit = normalize(some.float(), dim=-1).unflatten(1, (frames, -1))
        means = unit.mean(2)
        of_clip, of_frame = _gaussians(unit, means.mean(1, keepdim=True).expand_as(means)), _gaussians(unit, means)
        share = torch.softmax(-of_clip.mean(2) / TEMPERATURE, dim=1)
        ratio = (self.keep_ratio * (1 + share - share.mean(1, keepdim=True))).clamp_max(1)
        count = (ratio * unit.shape[2]).round().clamp_min(1)
        kept = among_best(-in_steps(of_clip + of_frame).flatten(0, 1), count.flatten())
        return masked(tokens, kept.view(streams, -1))


def _gaussians(unit: Tensor, anchor: Tensor) -> Tensor:
    """Likeness of tokens of unit length (`[windows, frames, tokens, dim]`) and the anchor of their frame (`[windows,
    frames, dim]`), by their distance, summed over five widths."""
    square = 1 + anchor.square().sum(-1, keepdim=True) - 2 * (unit @ anchor[..., None])[..., 0]
    return torch.stack([torch.exp(square / (-2 * scale)) for scale in _SCALES]).sum(0)
