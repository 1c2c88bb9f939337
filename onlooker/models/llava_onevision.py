"""LLaVA-OneVision: SigLIP or CLIP tower, two-layer projector, pooled to a quarter, Qwen2 decoder.

Paper: "LLaVA-OneVision: Easy Visual Task Transfer", arXiv 2408.03326; weights and code through Transformers 5.
Three deviations from its forward pass, none of which changes a result: pooling comes before the projector's second
layer (bilinear weights sum to one, so it commutes with an affine map, and that layer runs on a quarter of the tokens);
it is a product with fixed weights; and frames are embedded one by one, the closing newline once, after the last frame.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onlooker.core.contracts import PICTURE_SIZES, Encoded, VisionTower
from onlooker.core.errors import ModelError
from onlooker.core.spans import Layout
from onlooker.core.tokens import VisualTokens
from onlooker.models import _siglip
from onlooker.models._checkpoint import CheckpointModel
from onlooker.models._describing import GLOBAL, PIXELS, SALIENCY, last_attending, pictures_under
from onlooker.models._pixels import Pixels
from onlooker.models._pooling import Pooling
from onlooker.models._prompt import Prompt

MODEL_TYPE = "llava_onevision"


class Vision:
    """The seeing half of a `LlavaOnevisionForConditionalGeneration`, in pieces through which gradients flow.

    It changes nothing about the network, so that a trainer may use it beside the network's own forward pass.
    Raises `ModelError` for feature layers and strategies that cannot be computed frame by frame.
    """

    def __init__(self, network: Any) -> None:
        config, core = network.config, network.model
        layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
        kind = config.vision_config.model_type
        for what, given, valid in (
            ("a vision tower we know", kind, kind in ("siglip_vision_model", "clip_vision_model")),
            ("one vision feature layer", layer, isinstance(layer, int)),
            ("strategy full or default", strategy, strategy in ("full", "default")),
        ):
            if not valid:
                raise ModelError(f"the checkpoint needs {what}", given=str(given), do="use another checkpoint")
        total = config.vision_config.num_hidden_layers
        self._module, self._projector = core.vision_tower, core.multi_modal_projector
        self._num_layers = layer if layer >= 0 else total + 1 + layer
        self.tower: VisionTower = _siglip.take_apart(self._module, self._num_layers)
        """The layers up to the one whose output is projected, for pictures of the size it was trained with."""
        self._dropped = 1 if strategy == "default" else 0
        self.patch: int = config.vision_config.patch_size
        """Side of a patch in pixels."""
        self.side: int = config.vision_config.image_size // self.patch
        """Patches along a side of the pictures that it was trained with."""
        if self.tower.num_tokens - self._dropped != self.side**2:
            raise ModelError(
                "the checkpoint's feature strategy does not fit its tower",
                given=f"{strategy} on {kind}, {self.tower.num_tokens} tokens",
                do="use full for SigLIP and default for CLIP",
            )
        self.grid = self.grid_of(self.side)
        """Rows and columns of a frame's tokens in the language model."""
        # Geometry, not state: the same for every stream with pictures of that size.
        self._poolings = lru_cache(lambda side: Pooling((side, side), self.grid_of(side)))
        self._towers = lru_cache(lambda side: _siglip.take_apart(self._module, self._num_layers, side))

    def grid_of(self, side: int) -> tuple[int, int]:
        """Rows and columns of tokens in the language model, of a picture with so many patches along a side."""
        return math.ceil(side / 2), math.ceil(side / 2)

    def tower_of(self, side: int) -> VisionTower:
        """The same layers for pictures of so many patches along a side, whose positions are resampled."""
        return self.tower if side == self.side else self._towers(side)

    def _pool(self, tokens: Tensor) -> Tensor:
        """Patches `[streams, tokens, ...]` of pictures of any size pooled to a quarter."""
        return self._poolings(math.isqrt(tokens.shape[1]))(tokens)

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """`[streams, channels, rows, cols]` to `[streams, tokens, dim]`."""
        return _siglip.embed(self._module, pixels)

    def project(self, hidden: Tensor) -> Tensor:
        """Tower output `[streams, tokens, dim]` to language tokens `[streams, grid, hidden_dim]`, in raster order."""
        inner = self._projector.act(self._projector.linear_1(hidden[:, self._dropped :]))
        return self._projector.linear_2(self._pool(inner))

    def saliency(self, encoded: Encoded) -> Tensor:
        """Attention that each token gets in the last layer, float32 `[streams, grid]`, in raster order; needs the
        output of the layer before it."""
        last = len(self.tower.layers) - 1
        received = self.tower.layers[last].received(encoded.taps[last - 1], self.tower.pinned)  # pyright: ignore
        return self._pool(received[..., None])[..., 0]

    def class_rows(self, encoded: Encoded) -> Tensor:
        """The class token behind each layer, projected: `[streams, layers, hidden_dim]`; needs the output of all."""
        last = len(self.tower.layers) - 1
        rows = [encoded.hidden if layer == last else encoded.taps[layer] for layer in range(last + 1)]
        tokens = torch.stack([hidden[:, 0] for hidden in rows], dim=1)
        return self._projector.linear_2(self._projector.act(self._projector.linear_1(tokens)))


class LlavaOnevision(CheckpointModel):
    """A LLaVA-OneVision checkpoint."""

    model_type = MODEL_TYPE
    network_class = "LlavaOnevisionForConditionalGeneration"

    def __init__(self, network: Any, tokenizer: Any, pixels: Pixels, prompt: Prompt, name: str) -> None:
        config = network.config
        self.vision = Vision(network)
        image_size = config.vision_config.image_size
        if pixels.size != (image_size, image_size):
            raise ModelError(
                "the checkpoint's pictures do not fit its tower",
                given=f"processor {pixels.size}, tower {image_size} x {image_size}",
                do="correct size in its processor settings",
            )
        super().__init__(network, tokenizer, prompt, name)
        self._pixels = pixels
        own = getattr(config, "onlooker", None) or {}
        self._timestamps = own.get("timestamps")
        if self._timestamps not in (None, "[mm:ss]"):
            raise ModelError("unknown way of writing times", given=str(self._timestamps), do="use [mm:ss] or none")
        self._minutes_modulo: int | None = own.get("timestamp_minutes_modulo")
        """The clock the model was trained with starts again after so many minutes."""
        several = len(self.vision.tower.layers) > 1
        self.described = frozenset({GLOBAL, PIXELS, *([SALIENCY] if several else [])})
        self.offers = self.described | {PICTURE_SIZES} | ({"timestamps"} if self._timestamps else set())

    @classmethod
    def of_network(cls, network: Any, tokenizer: Any, folder: Path, name: str, pairs: bool) -> "LlavaOnevision":
        pixels = Pixels.from_folder(folder)
        prompt = Prompt.from_folder(tokenizer, [network.config.video_token_id], folder)
        return cls(network, tokenizer, pixels, prompt, name)

    # ------------------------------------------------------------------------------------------------ seeing

    def preprocess(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        return self._pixels.prepare(images, self.spec.device)

    def resize(self, image: np.ndarray) -> np.ndarray:
        return self._pixels.resize(image)

    def shrunk(self, image: np.ndarray, share: float) -> Tensor:
        """The size is fixed, so a smaller picture is one of fewer patches, whose positions are resampled: a form that
        the model was not trained with."""
        side = max(1, round(self.vision.side * share)) * self.vision.patch
        return replace(self._pixels, size=(side, side)).prepare([image], self.spec.device)[0]

    def embed_patches(self, pixels: Tensor) -> Tensor:
        return self.vision.embed_patches(pixels)

    def tower(self, pixels_shape: tuple[int, ...]) -> VisionTower:
        return self.vision.tower_of(self._side(pixels_shape))

    def _side(self, pixels_shape: tuple[int, ...]) -> int:
        """Patches along a side of pixels `[..., rows, cols]`. Raises `ModelError` for what `preprocess` and `shrunk` do
        not make."""
        rows, cols = pixels_shape[-2:]
        if (rows, cols) == self._pixels.size:
            return self.vision.side
        if rows != cols or not 0 < rows < self._pixels.size[0] or rows % self.vision.patch:
            raise ModelError("pixels do not fit the tower", given=str(pixels_shape), do="use preprocess")
        return rows // self.vision.patch

    def project(
        self, encoded: Encoded, pixels_shape: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, int], dict[str, Tensor]]:
        return self.vision.project(encoded.hidden), self.vision.grid_of(self._side(pixels_shape)), {}

    def taps_for(self, wanted: frozenset[str], tower: VisionTower) -> frozenset[int]:
        taps = {last - 1} if SALIENCY in wanted and (last := last_attending(tower.layers)) else set()
        return frozenset(taps | (set(range(len(tower.layers) - 1)) if GLOBAL in wanted and tower.pinned else set()))

    def describe(
        self, wanted: frozenset[str], encoded: Encoded, pixels: Tensor, features: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Saliency is pooled as the tokens are. Global rows are CLIP's class token behind each layer, through the
        projector (LongVLM, arXiv 2404.03384, section 3.3); with SigLIP, which has none, the mean of all tokens."""
        extras, whole = {}, {}
        if SALIENCY in wanted:
            extras[SALIENCY] = self.vision.saliency(encoded)
        if PIXELS in wanted:
            grid = self.vision.grid_of(self._side(tuple(pixels.shape)))
            extras[PIXELS] = pictures_under(pixels, (self._pixels.mean, self._pixels.std), grid)
        if GLOBAL in wanted:
            pooled = self.vision.tower.pinned == 0
            whole[GLOBAL] = features.mean(1, keepdim=True) if pooled else self.vision.class_rows(encoded)
        return extras, whole

    # ------------------------------------------------------------------------------------------------ reading

    def frame_ids(self, time_s: float) -> list[int]:
        if self._timestamps is None:
            return []
        minute, second = divmod(int(time_s), 60)
        if self._minutes_modulo:
            minute %= self._minutes_modulo
        return self._prompt.text_ids(f"[{minute:02d}:{second:02d}]")

    def closing_embeddings(self) -> Tensor:
        return self._network.model.image_newline[None]

    # ------------------------------------------------------------------------------------------------ placing

    def place_tokens(self, tokens: VisualTokens, layout: Layout) -> tuple[Tensor, int]:
        if layout == "pack" or not len(tokens):
            return torch.arange(len(tokens), device=tokens.frame.device)[None], len(tokens)
        slots, order = tokens.grid[0] * tokens.grid[1], tokens.frame - tokens.frame[0]
        return (order * slots + tokens.slot)[None], (int(order[-1]) + 1) * slots
