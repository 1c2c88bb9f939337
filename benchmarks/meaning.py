"""What search by meaning finds in Pocket World with a model's own features, against pixels and chance.

    python -m benchmarks.meaning --model pocket-aware --episodes 8 --fps 0.5

Watches so many one-minute videos and takes of every frame its gist (`Trace.gist`). A query is a frame: found should be
the frames that show one of its things (a shape of a colour), in the same and in other videos. Also words straight to
frames: the mean of the words' embeddings against the gist. Prints one JSON object: the mean average precision of each,
and that of chance (the share of right frames); `--out` appends it to a file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onlooker.core import provenance
from onlooker.engine import Engine
from onlooker.server.moments import unit
from onlooker.world import COLOURS, SHAPES, make_episode

FIRST_SEED = 70_000


def average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Of a ranking by `scores`, mean precision at each right one."""
    ranked = right[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(ranked) / (1 + np.arange(len(ranked))))[ranked].mean())


def watch(args: argparse.Namespace, engine: Engine) -> tuple[dict[str, np.ndarray], list[set], np.ndarray]:
    """Of all frames: vectors by what they are made of, the things that are there, and the number of the video."""
    gists, pixels, things, videos = [], [], [], []
    for number in range(args.episodes):
        episode = make_episode(FIRST_SEED + number, "test", duration_s=60.0)
        with engine.open(trace=True) as session:
            for frame in episode.frames(fps=args.fps):
                session.push(frame)
                assert session.trace is not None and session.trace.gist is not None, "every frame is seen"
                gists.append(session.trace.gist)
                rows = frame.image.reshape(16, 8, 16, 8, 3).mean((1, 3))
                pixels.append(rows.ravel().astype(np.float32))
                seen = [one for one in episode.view(frame.time_s) if one.sprite.shape < len(SHAPES)]
                things.append({(one.colour, SHAPES[one.sprite.shape]) for one in seen})
                videos.append(number)
    return {"own features": np.stack(gists), "pixels 16x16": np.stack(pixels)}, things, np.array(videos)


def by_example(vectors: np.ndarray, things: list[set], videos: np.ndarray, *, elsewhere: bool) -> dict[str, Any]:
    """Every third frame as a query; found are all others, or those of other videos."""
    centred = unit(vectors - vectors.mean(0))
    scores, chance = [], []
    for query in range(0, len(things), 3):
        others = videos != videos[query] if elsewhere else np.arange(len(things)) != query
        right = np.array([bool(things[query] & one) for one in things])[others]
        if right.any():
            scores.append(average_precision((centred @ centred[query])[others], right))
            chance.append(float(right.mean()))
    return {"ap": round(np.mean(scores), 3), "chance": round(np.mean(chance), 3), "queries": len(scores)}


def by_words(engine: Engine, vectors: np.ndarray, things: list[set]) -> dict[str, Any]:
    """Things by their names against the gists, in the space of the language model's embeddings."""
    centred = unit(vectors - vectors.mean(0))
    scores, chance = [], []
    for colour in COLOURS:
        for shape in SHAPES:
            right = np.array([(colour, shape) in one for one in things])
            if right.any():
                ids = engine.model.retrieval_ids(f"{colour} {shape}")
                words = engine.model.embed_text(ids).float().mean(0).numpy()
                scores.append(average_precision(centred @ unit(words[None])[0], right))
                chance.append(float(right.mean()))
    return {"ap": round(np.mean(scores), 3), "chance": round(np.mean(chance), 3), "queries": len(scores)}


@torch.no_grad()
def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-aware")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--fps", type=float, default=0.5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    engine = Engine.from_pretrained(args.model, device="cpu")
    vectors, things, videos = watch(args, engine)
    found: dict[str, Any] = {"benchmark": "meaning", "model": args.model, "episodes": args.episodes, "fps": args.fps}
    found |= {"frames": len(things)}
    for name, rows in vectors.items():
        found[f"{name}, same and other videos"] = by_example(rows, things, videos, elsewhere=False)
        found[f"{name}, other videos"] = by_example(rows, things, videos, elsewhere=True)
    found["words to own features"] = by_words(engine, vectors["own features"], things)
    found |= {"commit": provenance.commit(), "versions": provenance.versions()}
    print(json.dumps(found, indent=2))
    if args.out is not None:
        with args.out.open("a") as file:
            file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
