"""SigLIP and CLIP towers of Transformers, taken apart into pieces that can run on some tokens only."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onlooker.core.contracts import VisionTower
from onlooker.kernels.head_attention import attend_heads, wide
from onlooker.models._describing import attention_received


class EncoderLayer:
    """One SigLIP or CLIP encoder layer: both name their parts alike. Holds a module, no state of its own."""

    sees_all = True

    def __init__(self, module: Any) -> None:
        attention, mlp = module.self_attn, module.mlp
        self._head_dim, self._scale = attention.head_dim, attention.scale
        self._mlp_norm, self._mlp = module.layer_norm2, mlp
        self.norm = module.layer_norm1
        self.queries, self.keys, self.values = attention.q_proj, attention.k_proj, attention.v_proj
        self.out = attention.out_proj

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, index: Tensor | None = None) -> Tensor:
        """Attention of all heads; positions are in the embedding already, so `index` makes no difference."""
        heads = (-1, self._head_dim)
        attended = F.scaled_dot_product_attention(
            queries.unflatten(-1, heads).transpose(1, 2),
            keys.unflatten(-1, heads).transpose(1, 2),
            values.unflatten(-1, heads).transpose(1, 2),
            scale=self._scale,
        )
        return attended.transpose(1, 2).flatten(2)

    def scores(self, queries: Tensor, keys: Tensor, asking: Tensor | None, seen: Tensor | None) -> Tensor:
        """Scaled products of all heads; whose they are makes no difference."""
        q, k = (wide(part.unflatten(-1, (-1, self._head_dim)).transpose(1, 2)) for part in (queries, keys))
        return (q * self._scale) @ k.transpose(2, 3)

    def mlp(self, hidden: Tensor) -> Tensor:
        return self._mlp(self._mlp_norm(hidden))

    def received(self, hidden: Tensor, pinned: int) -> Tensor:
        """Attention that the tokens behind the pinned ones get of those, or of all where there are none: float32
        `[streams, tokens - pinned]`, of the hidden states that enter the layer."""
        normed, heads = self.norm(hidden), (-1, self._head_dim)
        asking = normed[:, :pinned] if pinned else normed
        queries, keys = self.queries(asking).unflatten(-1, heads), self.keys(normed).unflatten(-1, heads)
        return attention_received(queries, keys, self._scale)[:, pinned:]


class PackedEncoderLayer:
    """The same layer over rows of many streams: queries and values from one product, GELU inside the MLP's first."""

    angles: tuple[Tensor, Tensor] | None = None
    windows: Callable[..., Tensor] | None = None

    def __init__(self, module: Any) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.norm, self.mlp_norm = module.layer_norm1, module.layer_norm2
        self.keys, self.out = attention.k_proj, attention.out_proj
        self._heads = (attention.num_heads, attention.scale)
        self.heads: tuple[int, float] | None = self._heads
        three = (attention.q_proj, attention.v_proj, attention.k_proj)
        dim = attention.q_proj.out_features
        # Two of three in one product: two views of one tensor.
        weight, bias = (torch.cat([getattr(each, kind).detach() for each in three]) for kind in ("weight", "bias"))
        self.query_value = weight[: 2 * dim], bias[: 2 * dim]
        self.value_key = weight[dim:], bias[dim:]
        self.query_value_key, self.output = (weight, bias), (self.out.weight.detach(), self.out.bias.detach())
        self._mlp, self._up, self._down = mlp, mlp.fc1, mlp.fc2
        # cuBLAS has the tanh form of GELU in its epilogue, which saves a pass over the widest tensor of the layer. Its
        # tanh is the device's approximation, which half precision does not show; float32 would be off by 1e-3.
        like = weight
        self._gelu_inside = mlp.config.hidden_act == "gelu_pytorch_tanh" and like.is_cuda and like.itemsize == 2

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, way: str) -> Tensor:
        return attend_heads(queries, keys, values, *self._heads, way)

    def feed(self, normed: Tensor) -> Tensor:
        if not self._gelu_inside:
            return self._mlp(normed)
        inner = torch._addmm_activation(self._up.bias, normed, self._up.weight.t(), use_gelu=True)
        return self._down(inner)


def take_apart(tower: Any, num_layers: int | None = None, side: int | None = None) -> VisionTower:
    """The first `num_layers` layers (None: all) of a `SiglipVisionModel` or `CLIPVisionModel`, for pictures of `side` x
    `side` patches (None: as many as it was trained with).

    CLIP's class token is the one leading token that describes the whole frame.
    """
    embeddings, config = tower.embeddings, tower.config
    side = int(config.image_size // config.patch_size) if side is None else side
    pinned = embeddings.num_positions - embeddings.num_patches
    return VisionTower(
        layers=[EncoderLayer(module) for module in tower.encoder.layers[:num_layers]],
        num_tokens=side**2 + pinned,
        dim=config.hidden_size,
        pinned=pinned,
        mlp_dim=config.intermediate_size,
        grid=(side, side),
        pack=lambda: [PackedEncoderLayer(module) for module in tower.encoder.layers[:num_layers]],
    )


def embed(tower: Any, pixels: Tensor) -> Tensor:
    """Patch and position embedding `[streams, tokens, dim]` of pixels, and CLIP's norm before the first layer.

    Pictures smaller than those it was trained with get its positions resampled (bicubic), as the library does.
    """
    whole = pixels.shape[-1] == tower.config.image_size
    if whole and pixels.is_cuda and not hasattr(tower.embeddings, "class_embedding"):
        return _embedded(tower.embeddings, pixels)
    hidden = tower.embeddings(pixels) if whole else tower.embeddings(pixels, interpolate_pos_encoding=True)
    before = getattr(tower, "pre_layrnorm", None)  # Transformers spells it so
    return hidden if before is None else before(hidden)


def _embedded(embeddings: Any, pixels: Tensor) -> Tensor:
    """As SigLIP's own module, whose convolution is a product of patches: cuDNN turns pictures to channels last for it,
    and its kernel took 1 ms of a step of 16 frames on an H100. Rows are filled up to what matrix units read fast."""
    conv, size = embeddings.patch_embedding, embeddings.patch_size
    rows, cols = (side // size for side in pixels.shape[2:])
    inputs = conv.weight[0].numel()
    blocks = pixels[:, :, : rows * size, : cols * size].unflatten(3, (cols, size)).unflatten(2, (rows, size))
    patches = pixels.new_zeros(len(pixels), rows, cols, -(-inputs // 16) * 16, dtype=conv.weight.dtype)
    # [streams, channels, row, y, column, x]
    patches[..., :inputs] = blocks.permute(0, 2, 4, 1, 3, 5).flatten(3)
    weight = F.pad(conv.weight.flatten(1), (0, patches.shape[-1] - inputs))
    return F.linear(patches.flatten(1, 2), weight, conv.bias) + embeddings.position_embedding(embeddings.position_ids)
