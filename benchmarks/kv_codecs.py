"""What codecs of keys and values save, and how far off they are, on the blocks of a model that watched clips.

    python -m benchmarks.kv_codecs --model pocket-aware --clips 4

For every codec: bytes of a block of this model and of one of LLaVA-OneVision-7B with 60 tokens, as a share of 16 bits;
the relative error of keys and values (root of the mean square, of all blocks); and that of the attention's output of
random queries over all blocks of a clip. One JSON line a codec.

    python -m benchmarks.kv_codecs --answers benchmarks/results/kv_codecs_hour_2cores_202611.jsonl

What codecs cost in answers, from rows of `benchmarks.half_hour`: each codec of a memory against the same memory without
one, intervals and p over streams.
"""

import argparse
import json
from pathlib import Path

import torch

from onlooker.core import provenance, registry
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.evals.statistics import paired_gap
from onlooker.models import load
from onlooker.world import make_episode

SEVEN = (28, 4, 60, 128)
"""Layers, key-value heads, tokens and head size of a block there."""


def main() -> None:
    """Watch, encode, decode, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-aware")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=24)
    parser.add_argument("--answers", type=Path, help="print what codecs cost in these rows and stop")
    options = parser.parse_args()
    if options.answers is not None:
        tell(options.answers)
        return
    model = load(options.model, device="cpu")
    clips = [_blocks(model, seed, options.seconds) for seed in range(options.clips)]
    layers, heads, tokens, dim = SEVEN
    for name in registry.names("codec"):
        codec = registry.make("codec", name)
        size = codec.num_bytes(layers, heads, tokens, dim, torch.bfloat16)
        rows = [_errors(codec, clip) for clip in clips]
        errors = {key: round(sum(row[key] for row in rows) / len(rows), 5) for key in rows[0]}
        plain = 2 * layers * heads * tokens * dim * 2
        told = {"codec": name, "model": options.model, "clips": options.clips, "seconds": options.seconds}
        told |= {"versions": provenance.versions(), "commit": provenance.commit()}
        print(json.dumps({**told, "share_of_16_bits_at_7b": round(size / plain, 4), **errors}), flush=True)


def tell(path: Path) -> None:
    """A line for every memory and task: answers right, and points against the same memory without a codec."""
    worths: dict[str, dict[tuple, float]] = {}
    held: dict[str, list[int]] = {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        given = row["answers"]
        keys = [(row["stream"], number, task) for number, task in enumerate(given["task"])]
        worths.setdefault(row["memory"], {}).update(zip(keys, given["worth"], strict=True))
        held.setdefault(row["memory"], []).append(row["bytes"].get("host_rows", 0))
    for memory, ours in worths.items():
        plain = worths[memory.partition(" ")[0]]
        for task in ("", "ever", "when"):
            keys = [key for key in plain if task in ("", key[2])]
            gap = paired_gap([ours[key] - plain[key] for key in keys], [str(key[0]) for key in keys])
            told = {"memory": memory, "task": task or "all", "questions": len(keys)}
            told |= {"right": round(sum(ours[key] for key in keys) / len(keys), 3)}
            told |= {"points": [round(100 * one, 1) for one in (gap.gap, gap.low, gap.high)], "p": round(gap.p, 3)}
            print(json.dumps(told | {"host_mb": round(sum(held[memory]) / len(held[memory]) / 1e6, 1)}))


def _blocks(model, seed: int, seconds: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of every frame of a clip, as they lie."""
    session = Engine(model, encoder="full", memory="full").open()
    for frame in make_episode(seed, "test", seconds).frames(fps=1.0):
        session.push(Frame(frame.image, frame.time_s))
    window = session.store._window
    found = []
    for block in list(window.blocks.values())[1:]:
        rows = slice(window.row_of(block.id), window.row_of(block.id) + block.num_tokens)
        found.append((window.arena.keys[:, :, rows].clone(), window.arena.values[:, :, rows].clone()))
    return found


def _errors(codec, blocks: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    again = [codec.decode(codec.encode(*block), block[0].dtype) for block in blocks]
    keys, values = (torch.cat([block[i] for block in blocks], dim=2) for i in range(2))
    near_keys, near_values = (torch.cat([block[i] for block in again], dim=2) for i in range(2))
    # Queries that look like keys: what a question looks for is something that is there.
    chosen = torch.randperm(keys.shape[2], generator=torch.Generator().manual_seed(0))[:64]
    queries, scale = keys[:, :, chosen], keys.shape[3] ** -0.5

    def attended(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return (queries @ keys.transpose(2, 3) * scale).softmax(-1) @ values

    def off(got: torch.Tensor, wanted: torch.Tensor) -> float:
        return ((got - wanted).norm() / wanted.norm()).item()

    return {
        "keys_off": off(near_keys, keys),
        "values_off": off(near_values, values),
        "attended_off": off(attended(near_keys, near_values), attended(keys, values)),
    }


if __name__ == "__main__":
    with torch.no_grad():
        main()
