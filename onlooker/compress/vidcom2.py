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
from onlooker.compress._clip import ClipMethod, ClipState
from onlooker.core.tokens import VisualTokens

_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)
TEMPERATURE = 0.01


@dataclass(frozen=True)
class VidCom2(ClipMethod):
    """Frame and token uniqueness over a window."""

    def clip(self, tokens: VisualTokens, frames: int, state: ClipState) -> VisualTokens:
        """Of every frame, as many tokens as its share, those that stand out."""
        flat = tokens.features.detach().float()
        steady = flat.var(0, correction=0).argsort(stable=True)[: max(1, flat.shape[1] // 2)]
        unit = normalize(flat[:, steady], dim=-1).unflatten(0, (frames, -1))
        of_clip = _gaussians(unit - unit.mean((0, 1)))
        of_frame = _gaussians(unit - unit.mean(1, keepdim=True))
        share = torch.softmax(-of_clip.mean(1) / TEMPERATURE, dim=0)
        ratio = (self.keep_ratio * (1 + share - share.mean())).clamp_max(1)
        count = (ratio * unit.shape[1]).round().clamp_min(1)
        kept = among_best(-in_steps(of_clip + of_frame), count)
        return tokens.select(kept.flatten().nonzero()[:, 0])


def _gaussians(away: Tensor) -> Tensor:
    """Likeness of tokens that are so far from an anchor, `[frames, tokens, dim]`, summed over five widths."""
    distance = away.square().sum(-1)
    return torch.stack([torch.exp(-distance / (2 * scale)) for scale in _SCALES]).sum(0)
