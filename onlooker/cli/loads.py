"""What benches of many streams and many hours share: pictures, and what a model's sizes alone say."""

import functools
from typing import TYPE_CHECKING, Any

from onlooker.cli.output import size_text

if TYPE_CHECKING:
    from onlooker.core.contracts import VideoModel


def floors(name: str, model: "VideoModel") -> dict[str, Any]:
    """What the model's sizes alone say: parameters, bytes, arithmetic of a frame."""
    from onlooker.models import shape_of

    shape = shape_of(name)
    size = 2 if "16" in str(model.spec.dtype) else 4
    vision = shape.vision_layers * (4 * shape.vision_dim**2 + 2 * shape.vision_dim * shape.vision_mlp)
    text = shape.text_layers * (
        shape.text_dim * shape.head_dim * (2 * shape.query_heads + 2 * shape.kv_heads)
        + 3 * shape.text_dim * shape.text_mlp
    )
    scores = 4 * shape.vision_layers * shape.patches**2 * shape.vision_dim
    return {
        "parameters": shape.parameters,
        "weight_bytes": size * shape.parameters,
        "language_weight_bytes": size * text,
        "frame_tokens": shape.frame_tokens,
        "dense_encode_gflop": (2 * vision * shape.patches + scores) / 1e9,
        "read_gflop_per_token": 2 * text / 1e9,
    }


def show_card(card: dict[str, Any]) -> None:
    """Print the machine, the model and the demand, line by line."""
    for key, value in card.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name.replace('_', ' ')} {number:g}" for name, number in value.items())
        elif "bytes" in key:
            value = size_text(value)
        elif isinstance(value, int | float):
            value = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
        print(f"{key.replace('_', ' ')}: {value}")
    print()


@functools.lru_cache(maxsize=4)
def pictures(count: int, clips: int = 1) -> tuple[Any, ...]:
    """Moving Pocket World pictures: so many of each of several clips of the test split, one clip after the other.

    What a frame costs hangs on what moves. One clip says little of that: of the first of these (seed 3, whose camera
    moves) the default encoder computes every second frame whole, of eight clips every fifth. They are drawn once a
    process, and not to be written to.
    """
    from onlooker.world import make_episode

    seeds = [3, *(seed for seed in range(clips) if seed != 3)][:clips]
    return tuple(frame.image for seed in seeds for frame in make_episode(seed, "test", count).frames(fps=1.0))


def frame_of(image: Any, time_s: float = 0.0) -> Any:
    """A frame of a stream."""
    from onlooker.core.frame import Frame

    return Frame(image, time_s)
