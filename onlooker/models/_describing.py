"""What a tower can tell of its tokens besides their features, computed on request only: saliency and global rows.

Saliency is the attention that a token receives in the last layer in which every token sees every other: of the class
token where the tower has one (VisionZip, arXiv 2412.04467, section 3.2; there of the layer whose output is used, which
is the same), else of all tokens, mean over heads and queries (the same for SigLIP; FastVID and FlashVID do so for
Qwen). It is the attention over what an encoder accelerator made of the frame: the layer's queries and keys are computed
again from the hidden states that entered it, so that it needs one tap and nothing of the encoder.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

GLOBAL = "global"
"""Rows `[streams, rows, hidden_dim]` about the whole frame, in the language model's space."""
SALIENCY = "saliency"
"""How much attention a token gets, float32 `[streams, tokens]`."""


def attention_received(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Mean over heads and queries of the attention that every key gets, float32 `[streams, keys]`.

    Heads are apart: `[streams, tokens, heads, head_dim]`. One head at a time, so that no more than a square of tokens
    is there at once.
    """
    total = torch.zeros(keys.shape[:2], dtype=torch.float32, device=keys.device)
    for head in range(keys.shape[2]):
        weights = torch.bmm(queries[:, :, head], keys[:, :, head].transpose(1, 2)).float() * scale
        total += weights.softmax(-1).mean(1)
    return total / keys.shape[2]


def last_attending(layers: Sequence[Any]) -> int | None:
    """The last layer in which every token sees all others, and into which an earlier layer's output goes; None: there
    is none."""
    seeing = [number for number, layer in enumerate(layers) if number and layer.sees_all]
    return seeing[-1] if seeing else None
