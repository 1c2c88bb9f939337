"""The sizes of well-known checkpoints, for planning and timing where no weights are at hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onlooker.core.errors import ModelError
from onlooker.models._built_in import BUILT_IN
from onlooker.models._parts import split


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
        return (-(-(self.image_size // self.patch_size) // 2)) ** 2

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
        embeddings = self.vocabulary * self.text_dim * (1 if self.tied else 2)
        projector = self.vision_dim * self.text_dim + self.text_dim**2
        return vision + projector + self.layer_parameters + embeddings

    @property
    def layer_parameters(self) -> int:
        """Weights of the language layers' products, which `--arithmetic fp8` holds in one byte each."""
        attention = self.text_dim * self.head_dim * (2 * self.query_heads + 2 * self.kv_heads)
        return self.text_layers * (attention + 3 * self.text_dim * self.text_mlp)

    def reference_bytes(self, bits: int = 8) -> int:
        """Bytes that `stc_cacher` keeps of a stream in 8 or 4 bits: what `STCCacher.state_bytes` says, for those who
        load no torch.

        A layer: four rows and their scales (one a row, or one for every 32 numbers), four sketches and an age for each
        token; three shifts and their sketches, two counters.
        """
        groups = -(-self.vision_dim // 32)
        row = self.vision_dim + 4 if bits == 8 else groups * (16 + 2)
        token = 4 * row + 4 * 32 * 4 + 1
        return self.vision_layers * (self.patches * token + 3 * 4 * (self.vision_dim + 32) + 2 * 4) + 4 + 3 * 4


@dataclass(frozen=True)
class QwenShape(Shape):
    """Sizes of a Qwen-VL model; `image_size` is that of a frame, which may be of any size."""

    family: str = "qwen3_vl"
    key_dim: int = 128
    """Width of an attention head of the language model, which Qwen3 does not derive from `text_dim`."""
    whole_layers: tuple[int, ...] | None = None
    """Tower layers that attend to the whole frame, the others within windows (and all have gated MLPs); None: all."""
    tap_layers: tuple[int, ...] = ()
    """Tower layers whose output enters the language layers (DeepStack)."""

    @property
    def head_dim(self) -> int:
        return self.key_dim

    @property
    def parameters(self) -> int:
        in_mlp = (3 if self.whole_layers is not None else 2) * self.vision_dim * self.vision_mlp
        vision = self.vision_layers * (4 * self.vision_dim**2 + in_mlp)
        embeddings = self.vocabulary * self.text_dim * (1 if self.tied else 2)
        merger = 4 * self.vision_dim * (4 * self.vision_dim + self.text_dim)
        return vision + (1 + len(self.tap_layers)) * merger + self.layer_parameters + embeddings


_WHOLE = (7, 15, 23, 31)
_QWEN25 = {"family": "qwen2_5_vl", "whole_layers": _WHOLE}

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llava-onevision-0.5b", 384, 14, 26, 1152, 4304, 16, 24, 896, 4864, 14, 2, 152000, tied=True),
        Shape("llava-onevision-7b", 384, 14, 26, 1152, 4304, 16, 28, 3584, 18944, 28, 4, 152128),
        QwenShape("qwen2.5-vl-3b", 448, 14, 32, 1280, 3420, 16, 36, 2048, 11008, 16, 2, 151936, True, **_QWEN25),
        QwenShape("qwen2.5-vl-7b", 448, 14, 32, 1280, 3420, 16, 28, 3584, 18944, 28, 4, 152064, **_QWEN25),
        QwenShape(
            "qwen3-vl-2b", 448, 16, 24, 1024, 4096, 16, 28, 2048, 6144, 16, 8, 151936, True, tap_layers=(5, 11, 17)
        ),
        QwenShape(
            "qwen3-vl-4b", 448, 16, 24, 1024, 4096, 16, 36, 2560, 9728, 32, 8, 151936, True, tap_layers=(5, 11, 17)
        ),
        QwenShape("qwen3-vl-8b", 448, 16, 27, 1152, 4304, 16, 36, 4096, 12288, 32, 8, 151936, tap_layers=(8, 16, 24)),
    )
}


def shape_of(source: str) -> Shape:
    """The shape of a name in `SHAPES`, a built-in model or a local folder of a family with an adapter.

    Raises `ModelError` when there is none; no weights are read and no network is touched.
    """
    source, _ = split(source)
    if source in SHAPES:
        return SHAPES[source]
    from onlooker.models._loading import read_config  # imports torch, so only where a folder is read

    folder = Path(__file__).parent / BUILT_IN[source] if source in BUILT_IN else Path(source).expanduser()
    if not folder.is_dir():
        known = ", ".join([*SHAPES, *BUILT_IN])
        raise ModelError("there is no shape of that name", given=source, do=f"a local folder or one of: {known}")
    config = read_config(folder)
    try:
        if config["model_type"] in ("qwen2_5_vl", "qwen3_vl"):
            return _qwen_shape(source, config)
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
    except (KeyError, TypeError) as missing:
        raise ModelError(
            "the checkpoint's config lacks sizes that planning needs",
            given=f"{folder}: {missing}",
            do=f"give a folder of a family with an adapter, or one of: {', '.join(SHAPES)}",
        ) from missing


def _qwen_shape(name: str, config: dict[str, Any]) -> QwenShape:
    vision = config["vision_config"]
    text = config.get("text_config") or config  # older checkpoints of Qwen2.5-VL have no part for the text
    return QwenShape(
        name=name,
        image_size=32 * vision["patch_size"],
        patch_size=vision["patch_size"],
        vision_layers=vision["depth"],
        vision_dim=vision["hidden_size"],
        vision_mlp=vision["intermediate_size"],
        vision_heads=vision["num_heads"],
        text_layers=text["num_hidden_layers"],
        text_dim=text["hidden_size"],
        text_mlp=text["intermediate_size"],
        query_heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        vocabulary=text["vocab_size"],
        tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        family=config["model_type"],
        key_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
        whole_layers=tuple(vision["fullatt_block_indexes"]) if config["model_type"] == "qwen2_5_vl" else None,
        tap_layers=tuple(vision.get("deepstack_visual_indexes", ())),
    )
