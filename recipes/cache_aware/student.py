"""A model with adapters that can be switched off, so that it is its own teacher."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from onlooker.core.contracts import VisionTower
from onlooker.encode._layer import run_layer
from onlooker.encode.full import Full
from onlooker.encode.stc_published import STCPublished
from onlooker.models.llava_onevision import Vision
from recipes.cache_aware.reading import Asked, Reader

PARTS = ("tower", "projector", "decoder")


@dataclass(frozen=True)
class AdaptSettings:
    """How a model is adapted."""

    steps: int = 2000
    """Steps of the whole training, over all commands."""
    minutes: float = math.inf
    """Minutes of a command's training, at most; the rate has fallen to nothing by then."""
    frames: tuple[int, ...] = (8,)
    """Consecutive frames of the windows of a step; drawn for each step where there are several."""
    windows: int = 4
    """Windows of a step, from different places, where they have the first number of frames; fewer of longer ones."""
    fps: float = 2.0
    """Frames a second taken from the videos."""
    questions: int = 6
    """Questions about a window, each at a frame of its own."""
    answer_tokens: int = 8
    """Tokens of an answer that count, at most."""
    parts: tuple[str, ...] = PARTS
    """What learns: tower, projector, decoder."""
    rank: int = 16
    """Rank of the adapters of matrices, 0: any change; norms and biases are shifted freely."""
    rate: float = 1e-3
    """Largest learning rate of the adapters."""
    intervals: tuple[int, ...] = (2, 4, 8)
    """Intervals of the Cacher, drawn for each step."""
    ratios: tuple[float, ...] = (0.15, 0.25, 0.40)
    """Shares of tokens recomputed, drawn for each step."""
    dense_share: float = 0.5
    """Share of a step's windows that are seen densely as well."""
    dense_weight: float = 1.0
    """Weight of staying the same there."""
    feature_weight: float = 0.0
    """Weight of the features' distance to the teacher's, beside the answers."""
    seed: int = 0
    """Seed of everything drawn."""


class LowRank(nn.Module):
    """Adds a product of two thin matrices to a weight, unless it is switched off."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rank = min(rank, *weight.shape)
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1], device=weight.device) / math.sqrt(weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        self.is_on = True

    def forward(self, weight: Tensor) -> Tensor:
        """`[rows, cols]` with the adapter added; it starts as nothing."""
        return weight + (self.up @ self.down).to(weight.dtype) if self.is_on else weight


class Shift(nn.Module):
    """Adds something of the same shape to a weight, unless it is switched off."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(weight.shape, device=weight.device))
        self.is_on = True

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with the shift added; it starts as nothing."""
        return weight + self.shift.to(weight.dtype) if self.is_on else weight


class Student:
    """A LLaVA-OneVision network with adapters, and what it was without them."""

    def __init__(self, network: Any, prefix_ids: list[int], settings: AdaptSettings, *, autocast: bool = False) -> None:
        for p in network.parameters():
            p.requires_grad_(False)
        self.network, self.settings, self.autocast = network, settings, autocast
        self.vision, self.reader = Vision(network), Reader(network, prefix_ids, settings.answer_tokens)
        torch.manual_seed(settings.seed)
        self.adapted: list[tuple[nn.Module, str]] = []
        self.adapters: list[LowRank | Shift] = []
        for module, name in _weights(network, settings.parts):
            weight = getattr(module, name)
            is_thin = weight.ndim == 2 and settings.rank
            adapter = LowRank(weight, settings.rank) if is_thin else Shift(weight)
            parametrize.register_parametrization(module, name, adapter)
            self.adapted.append((module, name))
            self.adapters.append(adapter)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that learns."""
        return [p for adapter in self.adapters for p in adapter.parameters()]

    @contextlib.contextmanager
    def switched(self, on: bool) -> Iterator[None]:
        """Inside, the adapters are on, or off and nothing is learnt; what they make of a weight is made once."""
        for adapter in self.adapters:
            adapter.is_on = on
        device = next(self.network.parameters()).device.type
        learns = torch.set_grad_enabled(on and torch.is_grad_enabled())
        with learns, parametrize.cached(), torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            yield

    def features(self, pixels: Tensor, encoder: Full | STCPublished) -> Tensor:
        """What the language model gets, `[windows, frames, tokens, dim]`, of pixels `[windows, frames, 3, rows,
        cols]`."""
        if isinstance(encoder, Full):
            states = [encoder.new_state() for _ in range(pixels.shape[0] * pixels.shape[1])]
            hidden = self.vision.embed_patches(pixels.flatten(0, 1))
            out = self.vision.project(encoder.encode(self.vision.tower, hidden, states).hidden)
            return out.unflatten(0, pixels.shape[:2])
        hidden = self.vision.embed_patches(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        return self.vision.project(self._reusing(hidden, encoder).flatten(0, 1)).unflatten(0, pixels.shape[:2])

    def _reusing(self, hidden: Tensor, encoder: STCPublished) -> Tensor:
        """The tower under the Cacher. Frames of an interval depend on its first alone: they are computed at once."""
        windows, frames = hidden.shape[:2]
        every = min(encoder.interval or frames, frames)
        whole = frames - frames % every
        parts = []
        for part, length in ((hidden[:, :whole], every), (hidden[:, whole:], frames % every)):
            if length:
                pieces = part.unflatten(1, (-1, length)).flatten(0, 1)
                parts.append(reusing(self.vision.tower, pieces, encoder).flatten(0, 1).unflatten(0, (windows, -1)))
        return torch.cat(parts, 1)

    def loss(self, asked: Asked, encoder: STCPublished) -> tuple[Tensor, Tensor]:
        """How far the student's answers are from the dense teacher's: (under the Cacher, on dense frames), in nats a
        token, with the distance of the features as far as that counts."""
        share = self.settings.feature_weight
        with self.switched(False):
            target = self.features(asked.pixels, Full())
            said, wanted = self.reader.answers(target, asked)
        dense_rows = asked.first(max(1, round(self.settings.dense_share * len(asked.pixels))))
        rows = len(dense_rows.pixels)
        with self.switched(True):
            cached, dense = self.features(asked.pixels, encoder), self.features(dense_rows.pixels, Full())
            features, given = torch.cat([cached, dense]), torch.cat([said, said[:rows]])
            both = self.reader.logits(features, asked.beside(dense_rows), given)
        counts = self.reader.counted(said, asked)
        lost = away(both[: len(said)], wanted, counts), away(both[len(said) :], wanted[:rows], counts[:rows])
        if not share:
            return lost
        return lost[0] + share * error(cached, target), lost[1] + share * error(dense, target[:rows])

    def merge(self) -> None:
        """Make the adapters part of the weights."""
        for adapter in self.adapters:
            adapter.is_on = True
        for module, name in self.adapted:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _weights(network: Any, parts: tuple[str, ...]) -> list[tuple[nn.Module, str]]:
    """Matrices, norms and biases of the named parts, as (module, name)."""
    core = network.model
    roots = {"tower": core.vision_tower.encoder, "projector": core.multi_modal_projector,
             "decoder": core.language_model.layers}  # fmt: skip
    found = []
    for part in parts:
        for module in roots[part].modules():
            names = [name for name, p in module.named_parameters(recurse=False) if p.ndim in (1, 2)]
            found += [(module, name) for name in names]
    return found


def reusing(tower: VisionTower, frames: Tensor, encoder: STCPublished) -> Tensor:
    """Patches of intervals of frames, `[intervals, frames, tokens, dim]`, through the tower under the published Cacher
    in its plain form: the first of each is computed whole and is the reference of the others. To the rounding what a
    stream computes frame after frame, without a copy of the reference for each."""
    first, rest, others = frames[:, 0], frames[:, 1:].flatten(0, 1), frames.shape[1] - 1
    count = encoder.recomputed_tokens(tower)

    def wide(reference: Tensor) -> Tensor:
        return reference[:, None].expand(-1, others, -1, -1).flatten(0, 1)

    for layer in tower.layers:
        done = run_layer(layer, first)
        if others:
            normed = layer.norm(rest)
            keys = layer.keys(normed)
            alike = torch.cosine_similarity(keys.detach().float(), wide(done.keys).detach().float(), dim=-1)
            index = alike.topk(count, dim=1, largest=False).indices
            rows = index[..., None].expand(-1, -1, rest.shape[-1])
            fresh = normed.gather(1, rows)
            values = wide(done.values).scatter(1, rows, layer.values(fresh))
            middle = rest.gather(1, rows) + layer.out(layer.attend(layer.queries(fresh), keys, values, index))
            rest = (rest + wide(done.output - first)).scatter(1, rows, middle + layer.mlp(middle))
        first = done.output
    return torch.cat([first[:, None], rest.unflatten(0, (-1, others))], 1) if others else first[:, None]


def away(scores: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
    """Mean divergence of the student's answers from the teacher's, in nats a token that counts. Scores are `[windows,
    questions, tokens, vocabulary]`, `counts` bool without the last axis."""
    each = F.kl_div(scores.float().log_softmax(-1), wanted.float().log_softmax(-1), reduction="none", log_target=True)
    return (each.sum(-1) * counts).sum() / counts.sum().clamp(min=1)


def error(features: Tensor, target: Tensor) -> Tensor:
    """Squared distance to the target as a share of the target's variance over tokens. 0 where there are no tokens."""
    features, target = features.float(), target.float()
    if not target.numel():
        return target.new_zeros(())
    spread = (target - target.mean((0, 1, 2), keepdim=True)).pow(2).mean()
    return (features - target).pow(2).mean() / spread.clamp(min=1e-12)
