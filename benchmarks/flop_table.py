"""What a frame costs by arithmetic, at the real sizes of well-known models: the page docs/flops.md.

    python -m benchmarks.flop_table > docs/flops.md

Nothing is run and no weights are needed: networks are made without memory, for their geometry only.
"""

import dataclasses
from collections.abc import Iterator

import torch

from onlooker.core.contracts import VisionTower
from onlooker.encode._cost import dense_flop
from onlooker.encode.stc_published import STCPublished
from onlooker.models import SHAPES, Shape
from onlooker.models._qwen_pixels import MOST_FRAME_TOKENS, FittedPixels
from onlooker.models._shapes import QwenShape

FRAMES = ((448, 448), (720, 1280))
METHODS = (
    STCPublished(interval=None, recompute_ratio=0.25),
    STCPublished(interval=4, recompute_ratio=0.25),
    STCPublished(interval=None, recompute_ratio=0.1),
)
OPENING = """# What a frame costs

Printed by `python -m benchmarks.flop_table > docs/flops.md`. Arithmetic, not measurement: a multiply-add is two FLOP;
norms and similarities are left out (under 0.1 %). Window layers are counted with the keys a query may see (the
selective path masks the others out after multiplying them, so it does more), gated MLPs with their three matrices.

- *patches*: tokens inside the tower. A Qwen frame of 1280 x 720 is fitted to at most {most} language tokens.
- *dense*: GFLOP of the tower's layers for one frame.
- *fixed*: GFLOP of patch embedding and projector (all mergers), which no method here saves.
- *r = 0.25*: share of it for a frame between two references; *N = 4*: the mean over an interval of four frames, one of
  them whole; *r = 0.1*: as the first with a tenth recomputed. No implementation can take a smaller share of the time of
  an equally well treated dense tower where arithmetic is the limit.
- *reference*: what one stream's reference holds at 16 bits (keys, values and branch sum of every layer).
- *tokens*, *read*: language tokens of a frame and GFLOP to read all of them (weights only, two FLOP a weight and
  token), which a compressor that keeps a share k reduces to that share.

| model | frame | patches | fixed | dense | r = 0.25 | N = 4 | r = 0.1 | reference | tokens | read |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|
"""


def main() -> None:
    """Print the page."""
    print(page(), end="")


def page() -> str:
    """The whole page in Markdown."""
    return OPENING.format(most=MOST_FRAME_TOKENS) + "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    for shape in SHAPES.values():
        for frame, tower, tokens in _frames(shape):
            dense = dense_flop(tower) * len(tower.layers)
            shares = " | ".join(f"{method.cost(tower):.3f}" for method in METHODS)
            reference = 3 * len(tower.layers) * tower.num_tokens * tower.dim * 2
            fixed = _fixed_flop(shape, tower, tokens)
            read = 2 * _text_weights(shape) * tokens
            size = f"{frame[1]} x {frame[0]} | {tower.num_tokens}"
            yield (
                f"| {shape.name} | {size} | {fixed / 1e9:.0f} | {dense / 1e9:.0f} | {shares} "
                f"| {reference / 2**20:.0f} MiB | {tokens} | {read / 1e9:.0f} |"
            )


def _frames(shape: Shape) -> Iterator[tuple[tuple[int, int], VisionTower, int]]:
    """Frame sizes, their towers, and their language tokens."""
    if not isinstance(shape, QwenShape):
        # Layers are only counted.
        layers = [None] * shape.vision_layers
        tower = VisionTower(layers, shape.patches, shape.vision_dim, mlp_dim=shape.vision_mlp)  # pyright: ignore
        yield (shape.image_size, shape.image_size), tower, shape.frame_tokens
        return
    import importlib

    from onlooker.models._qwen_random import empty_network

    network = empty_network(dataclasses.replace(shape, text_layers=1), torch.bfloat16)
    vision = importlib.import_module(f"onlooker.models.{shape.family}").Vision(network)
    most = MOST_FRAME_TOKENS * vision.factor**2
    pixels = FittedPixels(size=(0, 0), factor=vision.factor, max_pixels=most)
    for frame in FRAMES:
        tower = vision.tower(*vision.patches(pixels.fit(*frame)))
        yield frame, tower, tower.num_tokens // tower.group


def _fixed_flop(shape: Shape, tower: VisionTower, tokens: int) -> float:
    pixels = 3 * shape.patch_size**2
    if not isinstance(shape, QwenShape):
        # The projector's second layer runs after pooling.
        projector = tower.num_tokens * tower.dim * shape.text_dim + tokens * shape.text_dim**2
        return 2 * (tower.num_tokens * pixels * tower.dim + projector)
    wide = tower.group * tower.dim
    mergers = (1 + len(shape.tap_layers)) * tokens * wide * (wide + shape.text_dim)
    return 2 * (tower.num_tokens * 2 * pixels * tower.dim + mergers)


def _text_weights(shape: Shape) -> int:
    attention = shape.text_dim * shape.head_dim * (2 * shape.query_heads + 2 * shape.kv_heads)
    return shape.text_layers * (attention + 3 * shape.text_dim * shape.text_mlp)


if __name__ == "__main__":
    main()
