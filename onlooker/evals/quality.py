"""How good is a picture: LMM-VQA's question, answered by a linear head on one frozen tower.

Ge et al., "LMM-VQA", arXiv 2408.14008, let a language model rate videos in words from spatial and motion features of
two towers. Here it is one tower and single pictures: means and deviations over tokens of what enters each layer, and of
what leaves the last, and a ridge regression to the severity of three known damages (`recipes.pocket.quality`). The five
words are five equal parts of the score, as in the reader of that task. The head costs a forward pass that a stream
makes anyway. On pictures of other worlds than the one it was taught on, what it says is a guess.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from onlooker.core.contracts import VideoModel, VisionTower
from onlooker.core.errors import ModelError
from onlooker.encode._layer import run_layer
from onlooker.evals.readers.lmm_vqa import LEVELS

REALISES = ("lmm_vqa",)
FILE = "quality.safetensors"
"""Beside a checkpoint's weights: `mean`, `scale` `[numbers]`, `weight` `[3, numbers]`, `bias` `[3]`."""
DAMAGES = ("blur", "blocks", "noise")


def tower_numbers(tower: VisionTower, hidden: Tensor) -> Tensor:
    """What a head reads of patches `[pictures, tokens, dim]`: float32 `[pictures, 2 * dim * (layers + 1)]`."""
    out = []
    for layer in tower.layers:
        out += [hidden.float().mean(1), hidden.float().std(1)]
        hidden = run_layer(layer, hidden).output
    return torch.cat([*out, hidden.float().mean(1), hidden.float().std(1)], 1)


class PictureQuality:
    """The head of one checkpoint beside its model."""

    def __init__(self, model: VideoModel, weights: dict[str, Tensor]) -> None:
        self._model, device = model, model.spec.device
        self._weights = {name: weight.to(device, torch.float32) for name, weight in weights.items()}

    @classmethod
    def of_folder(cls, model: VideoModel, folder: Path) -> "PictureQuality":
        """The head that lies beside a checkpoint. Raises `ModelError` where there is none, or a damaged one."""
        try:
            weights = load_file(folder / FILE)
            rows = {name: weights[name].shape[-1] for name in ("mean", "scale", "weight")}
            assert len(set(rows.values())) == 1 and weights["weight"].shape[0] == weights["bias"].shape[0] == len(
                DAMAGES
            )
        except (OSError, SafetensorError, KeyError, AssertionError) as error:
            raise ModelError(
                "the checkpoint has no head for the quality of pictures", given=f"{folder / FILE}: {error}",
                do="train one with recipes.pocket.quality",
            ) from error  # fmt: skip
        return cls(model, weights)

    @torch.no_grad()
    def severities(self, images: Sequence[np.ndarray]) -> Tensor:
        """Of blur, blocks and noise, 0 (none) to 1, float32 `[pictures, 3]`, of pictures uint8 `[rows, cols, 3]`."""
        pixels = torch.stack(list(self._model.preprocess(images)))
        numbers = tower_numbers(self._model.tower(tuple(pixels.shape)), self._model.embed_patches(pixels))
        return apply(self._weights, numbers)

    def rate(self, images: Sequence[np.ndarray]) -> list[tuple[float, str]]:
        """(score 0 to 1, word from bad to excellent) of each picture."""
        scores = 1 - self.severities(images).amax(1)
        return [(score, LEVELS[min(4, int(5 * score))]) for score in scores.tolist()]


def apply(weights: dict[str, Tensor], numbers: Tensor) -> Tensor:
    """Severities `[pictures, 3]` of what a head reads."""
    normed = (numbers - weights["mean"]) / weights["scale"]
    return torch.nn.functional.linear(normed, weights["weight"], weights["bias"]).clamp(0, 1)
