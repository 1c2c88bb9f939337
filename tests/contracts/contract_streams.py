"""Small made-up streams and a made-up vision tower: what methods of every kind are run on."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from onlooker.core.contracts import Look, Moment, VisionTower
from onlooker.core.tokens import VisualTokens

GRID = (4, 5)
DIM = 12


def _seeded(*seed: int) -> torch.Generator:
    number = 17
    for part in seed:
        number = number * 1009 + part
    return torch.Generator().manual_seed(number)


def moving_features(seed: int, number: int, tokens: int, dim: int) -> Tensor:
    """A steady background with a bright thing that moves and a little noise, float32 `[tokens, dim]`."""
    features = torch.randn(tokens, dim, generator=_seeded(seed, 1)) + torch.randn(dim, generator=_seeded(seed, 2))
    features[(number * 3) % tokens] += 4 * torch.randn(dim, generator=_seeded(seed, 3))
    return features + 0.1 * torch.randn(tokens, dim, generator=_seeded(seed, 4, number))


def frame_tokens(features: Tensor, number: int, grid: tuple[int, int] = GRID) -> VisualTokens:
    """One frame's tokens with extras by which a lost or shuffled row is found, and three rows about the whole frame."""
    count = len(features)
    extras = {
        "deepstack": torch.arange(count * 6).view(count, 2, 3).to(features.dtype) + 1000 * number,
        "saliency": torch.rand(count, generator=_seeded(5, number)),
        "pixels": torch.randint(0, 256, (count, 12), generator=_seeded(7, number // 2), dtype=torch.uint8),
    }
    whole = {"global": torch.randn(1, 3, features.shape[1], generator=_seeded(6, number)).to(features.dtype)}
    return VisualTokens.of_frame(features, grid, number, number * 0.5, extras, whole)


def moving_frame(seed: int, number: int, dtype: torch.dtype = torch.float32) -> VisualTokens:
    """Frame `number` of the moving clip `seed`."""
    return frame_tokens(moving_features(seed, number, GRID[0] * GRID[1], DIM).to(dtype), number)


def moment(seed: int, number: int) -> Moment:
    """A quiet stream with a burst now and then."""
    noise = float(torch.rand((), generator=_seeded(seed, number)))
    busy = (number + seed) % 40 >= 34
    return flat_moment(number * 0.5, 0.75 + 0.25 * noise if busy else 0.1 * noise)


def flat_moment(time_s: float, level: float) -> Moment:
    """A moment all of whose signals say the same, from 0 (nothing) to 1."""
    return Moment(
        time_s,
        kept_ratio=level,
        recomputed_ratio=level,
        speak_probability=level,
        silence_probability=1.0 - level,
        silence_is_likeliest=level < 0.5,
        surprise=10.0 * level,
        said_perplexity=1.0 + level,
        heads={"informative": level / 2, "relevance": level / 2},
        decision=level,
        pooled=torch.tensor([1.0, 2.0 * level, 1.0 - level]),
    )


def block_keys(seed: int, number: int, rows: int) -> Tensor:
    """Raw keys of a block, of things that come again, `[2 layers, 2 heads, rows, 8]`."""
    things = torch.randn(5, 2, 2, 1, 8, generator=_seeded(seed, 21))
    return things[number % 5] + 0.3 * torch.randn(2, 2, rows, 8, generator=_seeded(seed, number, 22))


def look(seed: int, number: int, words: int = 5, frames: int = 6, dtype: torch.dtype = torch.float32) -> Look:
    """Words that look at frames of 8 rows and at a note of 3; one frame stands out."""
    heads, groups, dim = 2, 2, 8
    chosen = _seeded(seed, number, 11)
    counts = [8] * frames + [3]
    keys = torch.randn(heads, sum(counts), dim, generator=chosen)
    queries = torch.randn(heads * groups, words, dim, generator=chosen)
    keys[:, 8 * (number % frames) : 8 * (number % frames) + 8] += queries[::groups].mean(1, keepdim=True)
    block = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    own = torch.randn(heads, words, dim, generator=chosen)
    return Look(1, 6, queries.to(dtype), keys.to(dtype), own.to(dtype), dim**-0.5, block, block < frames)


def odd_looks() -> list[Look]:
    """Looks at one row, at no video, at rows that are all alike, of one word, and in half precision."""
    plain = look(0, 0)
    one = replace(plain, keys=plain.keys[:, :1], block=plain.block[:1], vision=plain.vision[:1])
    notes = replace(plain, vision=torch.zeros_like(plain.vision))
    alike = replace(plain, keys=torch.ones_like(plain.keys))
    return [one, notes, alike, look(0, 0, words=1), look(0, 0, dtype=torch.bfloat16)]


@dataclass
class ToyLayer:
    """A pre-norm transformer layer with two heads, in the pieces of `contracts.VisionLayer`."""

    weights: dict[str, Tensor]

    def norm(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])

    def queries(self, normed: Tensor) -> Tensor:
        return normed @ self.weights["q"]

    def keys(self, normed: Tensor) -> Tensor:
        return normed @ self.weights["k"]

    def values(self, normed: Tensor) -> Tensor:
        return normed @ self.weights["v"]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, index: Tensor | None = None) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (2, -1)).transpose(1, 2)

        attended = torch.nn.functional.scaled_dot_product_attention(split(queries), split(keys), split(values))
        return attended.transpose(1, 2).flatten(2)

    def scores(self, queries: Tensor, keys: Tensor, asking: Tensor | None, seen: Tensor | None) -> Tensor:
        q, k = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (queries, keys))
        products = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        return products.float() if products.element_size() < 4 else products

    def out(self, attended: Tensor) -> Tensor:
        return attended @ self.weights["o"]

    def mlp(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.gelu(self.norm(hidden) @ self.weights["up"]) @ self.weights["down"]

    def dense(self, hidden: Tensor) -> Tensor:
        """The plain layer of the docstring of `contracts.VisionLayer`."""
        normed = self.norm(hidden)
        hidden = hidden + self.out(self.attend(self.queries(normed), self.keys(normed), self.values(normed)))
        return hidden + self.mlp(hidden)


def picture(seed: int, number: int) -> np.ndarray:
    """A bright square crosses noisy ground for ten frames and stands still for ten, uint8 `[48, 64, 3]`."""
    moved = number // 20 * 10 + min(number % 20, 10)
    ground = np.random.default_rng((seed, number)).integers(-2, 3, (48, 64, 3))
    image = np.full((48, 64, 3), 60 + 10 * seed) + ground
    left = (5 * moved + 7 * seed) % 52
    image[20:32, left : left + 12] = 220
    return image.clip(0, 255).astype(np.uint8)


def toy_tower(num_tokens: int = 13, group: int = 1, pinned: int = 1, dtype: torch.dtype = torch.float64) -> VisionTower:
    """Four layers, the second of them tapped. float64, so that rounding does not choose tokens."""
    layers = []
    for number in range(4):
        shapes = {"q": (16, 16), "k": (16, 16), "v": (16, 16), "o": (16, 16), "up": (16, 32), "down": (32, 16)}
        make = _seeded(99, number)
        layers.append(
            ToyLayer({n: (torch.randn(s, generator=make) * s[0] ** -0.5).to(dtype) for n, s in shapes.items()})
        )
    return VisionTower(layers, num_tokens, 16, group, pinned, frozenset({1}))
