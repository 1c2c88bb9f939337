"""The sizes of well-known checkpoints, for planning and timing where no weights are at hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onlooker.core.errors import ModelError


@dataclass(frozen=True)
class Shape:
    """Sizes of a video language model."""

    name: str
    image_size: int
    patch_size: int
    vision_layers: int
    vision_dim: int
    vision_mlp: int
    vision_heads: int
    text_layers: int
    text_dim: int
    text_mlp: int
    query_heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def patches(self) -> int:
        """Tokens of a frame inside the vision tower."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame before compression, after pooling to half the side."""
        return -((-(self.image_size // self.patch_size) // 2) ** 2)

    @property
    def head_dim(self) -> int:
        """Width of an attention head of the language model."""
        return self.text_dim // self.query_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in all layers, at 16 bits."""
        return 2 * self.text_layers * self.kv_heads * self.head_dim * 2

    @property
    def parameters(self) -> int:
        """Weights, rounded by leaving out norms and biases."""
        vision = self.vision_layers * (4 * self.vision_dim**2 + 2 * self.vision_dim * self.vision_mlp)
        attention = self.text_dim * self.head_dim * (2 * self.query_heads + 2 * self.kv_heads)
        text = self.text_layers * (attention + 3 * self.text_dim * self.text_mlp)
        embeddings = self.vocabulary * self.text_dim * (1 if self.tied else 2)
        projector = self.vision_dim * self.text_dim + self.text_dim**2
        return vision + projector + text + embeddings

    @property
    def reference_bytes(self) -> int:
        """Bytes one stream's STC-Cacher reference takes at 16 bits: three tensors a layer."""
        return 3 * self.vision_layers * self.patches * self.vision_dim * 2


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llava-onevision-0.5b", 384, 14, 26, 1152, 4304, 16, 24, 896, 4864, 14, 2, 152000, tied=True),
        Shape("llava-onevision-7b", 384, 14, 26, 1152, 4304, 16, 28, 3584, 18944, 28, 4, 152128),
    )
}


def shape_of(source: str) -> Shape:
    """The shape of a name in `SHAPES`, a built-in model or a local LLaVA-OneVision folder.

    Raises `ModelError` when there is none; no weights are read and no network is touched.
    """
    from onlooker.models import BUILT_IN
    from onlooker.models._loading import read_config

    if source in SHAPES:
        return SHAPES[source]
    folder = Path(__file__).parent / BUILT_IN[source] if source in BUILT_IN else Path(source).expanduser()
    if not folder.is_dir():
        known = ", ".join([*SHAPES, *BUILT_IN])
        raise ModelError("there is no shape of that name", given=source, do=f"a local folder or one of: {known}")
    config = read_config(folder)
    try:
        vision, text = config["vision_config"], config["text_config"]
        return Shape(
            name=source,
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            vision_layers=vision["num_hidden_layers"],
            vision_dim=vision["hidden_size"],
            vision_mlp=vision["intermediate_size"],
            vision_heads=vision["num_attention_heads"],
            text_layers=text["num_hidden_layers"],
            text_dim=text["hidden_size"],
            text_mlp=text["intermediate_size"],
            query_heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            vocabulary=text["vocab_size"],
            tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        )
    except KeyError as missing:
        raise ModelError("the checkpoint's config lacks a size", given=str(missing), do="give another folder") from None


def random_network(shape: Shape, dtype: Any, device: Any) -> Any:
    """A network of this shape with random weights: right in every size, wrong in every answer; for timing only."""
    import torch
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            num_hidden_layers=shape.vision_layers,
            hidden_size=shape.vision_dim,
            intermediate_size=shape.vision_mlp,
            num_attention_heads=shape.vision_heads,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            num_hidden_layers=shape.text_layers,
            hidden_size=shape.text_dim,
            intermediate_size=shape.text_mlp,
            num_attention_heads=shape.query_heads,
            num_key_value_heads=shape.kv_heads,
            vocab_size=shape.vocabulary,
            rope_theta=1e6,
            tie_word_embeddings=shape.tied,
        ),
        image_token_index=shape.vocabulary - 2,
        video_token_index=shape.vocabulary - 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    with torch.device("meta"):
        network = LlavaOnevisionForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    # Buffers made on the meta device hold nothing until init_weights fills them, rotary frequencies among them.
    network.to_empty(device=device)
    network.init_weights()
    network.tie_weights()
    return network.eval()
