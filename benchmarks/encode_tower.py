"""What the benches time: a vision tower with random weights, moving frames, and the published algorithm op by op."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from onlooker.kernels import head_attention
from onlooker.models._pixels import Pixels
from onlooker.models._shapes import Shape
from onlooker.models._siglip import embed
from onlooker.world import make_episode

MOMENTS = 6


def moving_frames(module: Any, image_size: int, streams: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Embedded frames of moving pictures, one `[streams, tokens, dim]` per moment."""
    pixels = Pixels((image_size, image_size))
    clips = [list(make_episode(seed, "test", MOMENTS).frames(fps=1.0)) for seed in range(min(streams, 8))]
    moments = []
    for moment in range(MOMENTS):
        # Beyond eight clips, streams show the first ones at other moments.
        images = [clips[s % 8][(moment + s // 8) % MOMENTS].image for s in range(streams)]
        moments.append(embed(module, torch.stack(pixels.prepare(images, device)).to(dtype)))
    return moments


def random_tower(shape: Shape, layers: int, device: torch.device, dtype: torch.dtype) -> Any:
    """A SigLIP tower of these sizes; `layers` of them, 0: all."""
    config = SiglipVisionConfig(
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        num_hidden_layers=layers or shape.vision_layers,
        hidden_size=shape.vision_dim,
        intermediate_size=shape.vision_mlp,
        num_attention_heads=shape.vision_heads,
        vision_use_head=False,
    )
    with torch.device(device):
        return SiglipVisionModel._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def twin(module: Any) -> Any:
    """The same tower in float32."""
    with torch.device(next(module.parameters()).device):
        other = SiglipVisionModel._from_config(module.config, dtype=torch.float32, attn_implementation="sdpa")
    other.load_state_dict(module.state_dict())
    return other.eval()


class Published:
    """The published algorithm as its authors' code runs it, op by op: keys projected twice, four tensors a layer, whole
    copies, both norms on all tokens, unsorted choice (paper arXiv 2512.00891 and its code, restated)."""

    def __init__(self, layers: Sequence[Any], count: int) -> None:
        self.layers, self.count = layers, count
        self.kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def whole(self, hidden: Tensor) -> Tensor:
        """A reference frame of every stream."""
        self.kept = []
        for layer in self.layers:
            attention, normed = layer.self_attn, layer.layer_norm1(hidden)
            keys, values = attention.k_proj(normed), attention.v_proj(normed)
            branch = attention.out_proj(self._attend(attention, attention.q_proj(normed), keys, values))
            middle = hidden + branch
            mlp = layer.mlp(layer.layer_norm2(middle))
            self.kept.append((keys, values, branch, mlp))
            hidden = middle + mlp
        return hidden

    def selective(self, hidden: Tensor) -> Tensor:
        """A frame between."""
        for layer, (old_keys, old_values, old_branch, old_mlp) in zip(self.layers, self.kept, strict=True):
            attention, normed = layer.self_attn, layer.layer_norm1(hidden)
            alike = F.cosine_similarity(attention.k_proj(normed), old_keys, dim=-1)
            index = alike.topk(self.count, dim=1, largest=False).indices
            index = index[:, :, None].expand(-1, -1, hidden.shape[-1])
            chosen = normed.gather(1, index)
            queries, keys = attention.q_proj(chosen), attention.k_proj(normed)
            values = old_values.clone().scatter(1, index, attention.v_proj(chosen))
            fresh = attention.out_proj(self._attend(attention, queries, keys, values))
            middle = hidden + old_branch.clone().scatter(1, index, fresh)
            rows = layer.layer_norm2(middle).gather(1, index)
            hidden = middle + old_mlp.clone().scatter(1, index, layer.mlp(rows))
        return hidden

    def _attend(self, attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return head_attention.attend_heads(queries, keys, values, attention.num_heads, attention.scale, "torch")
