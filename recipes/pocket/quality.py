"""A head for the quality of pictures on a frozen tower, and what it is worth: `python -m recipes.pocket.quality`.

Pictures of Pocket World get one damage of known severity (blur, blocks, noise at 1/4, 1/2, 3/4 and 1) or none; sensors
are as noisy as in L1. Two heads are fitted to the three severities by ridge regression on the same training pictures,
its strength chosen on a part of them: on what the tower makes of a picture, and, as the free twin, on what costs
nothing (edges, flatness, steps at block borders, contrast, and their products). Looked at on test pictures:

- rank correlation with the true severity, for all damages together and apart;
- a frozen stream against a still scene seen by a noisy sensor, by what changes from frame to frame;
- refusal: of questions about clips with damaged shots, the share answered right when those are refused whose frames
  look worst; the threshold leaves 80 % of validation questions.

    python -m recipes.pocket.quality --model onlooker/models/pocket_naive --train 4000 --test 2000 --clips 128 \\
        --rows rows.jsonl --out quality.safetensors
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from onlooker.evals.quality import DAMAGES, apply, tower_numbers
from onlooker.models.llava_onevision import Vision
from onlooker.world import LEVEL_NAMES, LEVELS, make_episode, rasterise, render_tables
from onlooker.world.episode import Split
from recipes.pocket.data import ClipSet, make_set
from recipes.pocket.evaluate import Seen, answers, is_right, load_checkpoint
from recipes.pocket.model import Pocket
from recipes.pocket.tokenizer import Encoder

SEVERITIES = (0.25, 0.5, 0.75, 1.0)
STRENGTHS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
BATCH = 50
FIRST = 500_000
"""Seed of the first picture; trainings of the pocket models take lower ones first."""
REFUSAL = replace(LEVELS["L1"], damage_share=0.4, damage=1.0)
"""The level that refusal is tried on: two shots of five are damaged, up to severity 1."""


def pictures(split: Split, count: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (pictures uint8 `[pictures, rows, cols, 3]` of L1 to L3, severities `[pictures, 3]`)."""
    for first in range(0, count, BATCH):
        rng = random.Random(f"quality/{split}/{first}")
        number = min(BATCH, count - first)
        episodes = [
            make_episode(FIRST + first + i, split, 24.0, level=rng.choice(LEVEL_NAMES[1:4])) for i in range(number)
        ]
        tables = render_tables(episodes, np.array([[rng.uniform(0, 23)] for _ in episodes]))
        severities = np.zeros((number, 1, len(DAMAGES)), np.float32)
        for row in severities:
            kind = rng.randrange(len(DAMAGES) + 1)
            if kind < len(DAMAGES):
                row[0, kind] = rng.choice(SEVERITIES)
        tables["damage"] = severities
        tables["noise_sigma"] = np.minimum(tables["noise_sigma"], LEVELS["L1"].noise_sigma[1])
        drawn = rasterise({name: torch.as_tensor(table).to(device) for name, table in tables.items()})
        yield drawn.images[:, 0], torch.from_numpy(severities[:, 0])


def of_tower(model: Pocket, images: Tensor) -> Tensor:
    """What the head reads of pictures `[pictures, rows, cols, 3]`."""
    vision = Vision(model.hf)
    pixels = images.to(next(model.parameters()).device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tower_numbers(vision.tower, vision.embed_patches(pixels))


def for_free(images: Tensor) -> Tensor:
    """What the free twin reads, float32 `[pictures, numbers]`: nine numbers and their products."""
    light = images.float() @ torch.tensor([0.25, 0.625, 0.125], device=images.device)
    across, down = light.diff(dim=2).abs(), light.diff(dim=1).abs()
    round_about = light[:, :-2, 1:-1] + light[:, 2:, 1:-1] + light[:, 1:-1, :-2] + light[:, 1:-1, 2:]
    bend = (4 * light[:, 1:-1, 1:-1] - round_about).flatten(1)
    steps = torch.cat([across.flatten(1), down.flatten(1)], 1)
    steepest = steps.topk(steps.shape[1] // 100, dim=1).values.mean(1)  # as the server tells blur
    found = [bend.var(1), bend.abs().mean(1), bend.abs().median(1).values, steepest, steps.mean(1), light.std((1, 2))]
    for side in (4, 8, 16):
        at_borders = across[:, :, side - 1 :: side].mean((1, 2)) + down[:, side - 1 :: side].mean((1, 2))
        found.append(at_borders / (steps.mean(1) + 0.1))
    plain = torch.stack(found, 1).clamp(min=0).add(0.1).log()
    pairs = [plain[:, [i]] * plain[:, i:] for i in range(plain.shape[1])]
    return torch.cat([plain, *pairs], 1)


def fit(numbers: Tensor, severities: Tensor) -> dict[str, Tensor]:
    """A head: ridge regression whose strength is best on the last fifth, fitted on all."""
    numbers, severities = numbers.double().cpu(), severities.double().cpu()
    mean, scale = numbers.mean(0), numbers.std(0).clamp(min=1e-6)
    x, held = (numbers - mean) / scale, len(numbers) // 5

    def solve(rows: slice, strength: float) -> tuple[Tensor, Tensor]:
        bias = severities[rows].mean(0)
        own = x[rows]
        gram = own.T @ own + strength * torch.eye(own.shape[1], dtype=own.dtype)
        return torch.linalg.solve(gram, own.T @ (severities[rows] - bias)).T, bias

    def misses(strength: float) -> float:
        weight, bias = solve(slice(0, -held), strength)
        return float((x[-held:] @ weight.T + bias - severities[-held:]).pow(2).mean())

    weight, bias = solve(slice(None), min(STRENGTHS, key=misses))
    return {name: t.float().contiguous() for name, t in
            (("mean", mean), ("scale", scale), ("weight", weight), ("bias", bias))}  # fmt: skip


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, ties shared."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((2 * ends - counts - 1) / 2.0)[inverse]


def srcc(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def auc(high: np.ndarray, low: np.ndarray) -> float:
    """How often one of `high` is above one of `low`."""
    together = ranks(np.concatenate([high, low]))
    return float((together[: len(high)].sum() - len(high) * (len(high) - 1) / 2) / (len(high) * len(low)))


def correlations(said: Tensor, truth: Tensor) -> dict[str, float]:
    """Rank correlations of severities `[pictures, 3]`: of the worst, then of each among its own and the undamaged."""
    said, truth = said.cpu(), truth.cpu()
    out = {"all": srcc(said.amax(1).numpy(), truth.amax(1).numpy())}
    for number, name in enumerate(DAMAGES):
        rows = (truth[:, number] > 0) | (truth.amax(1) == 0)
        out[name] = srcc(said[rows, number].numpy(), truth[rows, number].numpy())
    return {name: round(value, 4) for name, value in out.items()}


def frozen_or_still(model: Pocket, count: int) -> dict[str, float]:
    """How well a frozen stream is told from a still scene: two frames that are one, or that differ by sensor noise.

    By the mean change of pixels, and by that of what the head reads of the two.
    """
    images = torch.cat([batch for batch, _ in pictures("test", count, torch.device("cpu"))])
    draw = torch.Generator().manual_seed(0)
    sensor = torch.empty(len(images), 1, 1, 1).uniform_(0.5, 3.0, generator=draw)
    noise = torch.randn(images.shape, generator=draw) * sensor
    again = (images.float() + noise).round().clamp(0, 255).byte()
    half = len(images) // 2
    seconds = torch.cat([images[:half], again[half:]])
    by_pixel = (seconds.float() - images.float()).abs().mean((1, 2, 3)).numpy()
    with torch.no_grad():
        moved = torch.cat([(of_tower(model, a) - of_tower(model, b)).abs().mean(1).cpu() for a, b in
                           zip(seconds.split(BATCH), images.split(BATCH), strict=True)]).numpy()  # fmt: skip
    return {
        "pixels": round(auc(by_pixel[half:], by_pixel[:half]), 4),
        "tower": round(auc(moved[half:], moved[:half]), 4),
    }


@torch.no_grad()
def asked(model: Pocket, encoder: Encoder, data: ClipSet, heads: dict[str, dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """Of every question: whether its dense answer is right, and how bad the frames look that it has seen, by head."""
    device = next(model.parameters()).device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    out: dict[str, list[float]] = {"right": [], **{name: [] for name in heads}}
    for first in range(0, len(data.records), 16):
        rows = slice(first, first + 16)
        seen = Seen(model, {name: torch.from_numpy(a[rows]).to(device) for name, a in data.arrays.items()}, dtype)
        images = ((seen.pixels.float() + 1) * 127.5).round().permute(0, 1, 3, 4, 2)
        bad = {}
        for name, head in heads.items():
            read = of_tower if name == "tower" else lambda _, flat: for_free(flat)
            numbers = torch.cat([read(model, part) for part in images.flatten(0, 1).split(256)])
            head = {key: value.to(device) for key, value in head.items()}
            bad[name] = apply(head, numbers).amax(1).view(images.shape[:2]).cpu()
        for clip, texts in enumerate(answers(model, encoder, seen, "dense")):
            for number, text in enumerate(texts):
                if record := data.records[first + clip][number]:
                    out["right"].append(is_right(text, data.texts[first + clip][number], record))
                    last = int(data.arrays["asked"][first + clip, number]) + 1
                    for name in heads:
                        out[name].append(float(bad[name][clip, :last].mean()))
    return {name: np.array(values, dtype=np.float64) for name, values in out.items()}


def refusal(chosen: dict[str, np.ndarray], test: dict[str, np.ndarray], name: str, coverage: float = 0.8) -> dict:
    """Right answers of test questions before and after refusing what looks worse than 80 % of validation's."""
    limit = np.quantile(chosen[name], coverage)
    kept = test[name] <= limit
    return {"right": round(test["right"].mean(), 4), "answered_right": round(test["right"][kept].mean(), 4),
            "coverage": round(kept.mean(), 4), "questions": len(kept)}  # fmt: skip


def run(
    model_folder: Path, train: int, test: int, clips: int, workers: int, rows: Path, out: Path | None
) -> list[dict]:
    """Fit both heads, look at them, write lines and the head."""
    LEVELS["L1"], plain = REFUSAL, LEVELS["L1"]
    try:  # workers are forked, and see the level as it stands in the table
        sets = [make_set(split, clips, workers=workers, level="L1") for split in ("validation", "test")]
    finally:
        LEVELS["L1"] = plain
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, encoder = load_checkpoint(model_folder, device)
    lines, heads, truth = [], {}, {}
    wanted: tuple[tuple[Split, int], ...] = ("train", train), ("test", test)
    with torch.no_grad():
        made = {split: [(of_tower(model, images).cpu(), for_free(images).cpu(), severities)
                        for images, severities in pictures(split, count, device)]
                for split, count in wanted}  # fmt: skip
    for place, name in enumerate(("tower", "free")):
        numbers = {split: torch.cat([batch[place] for batch in batches]) for split, batches in made.items()}
        truth = {split: torch.cat([batch[2] for batch in batches]) for split, batches in made.items()}
        heads[name] = fit(numbers["train"], truth["train"])
        found = correlations(apply(heads[name], numbers["test"]), truth["test"])
        lines.append({"head": name, "train": train, "test": test, "numbers": numbers["train"].shape[1], "srcc": found})
    lines.append({"frozen_or_still": frozen_or_still(model, min(test, 400))})
    chosen, seen = (asked(model, encoder, data, heads) for data in sets)
    lines += [{"refusal": name, "clips": clips} | refusal(chosen, seen, name) for name in heads]
    rows.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": model_folder.name, "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
             "torch": torch.__version__}  # fmt: skip
    with rows.open("a") as file:
        file.writelines(json.dumps(about | line) + "\n" for line in lines)
    print("\n".join(map(json.dumps, lines)), flush=True)
    if out is not None:
        save_file({name: weight.half() if name == "weight" else weight for name, weight in heads["tower"].items()}, out)
    return lines


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a pocket model")
    parser.add_argument("--train", type=int, default=4000, help="pictures to fit on (4000)")
    parser.add_argument("--test", type=int, default=2000, help="pictures to look at (2000)")
    parser.add_argument("--clips", type=int, default=128, help="clips of questions to refuse, on each side (128)")
    parser.add_argument("--workers", type=int, default=0, help="processes that make those clips")
    parser.add_argument("--rows", type=Path, required=True, help="file that lines are added to")
    parser.add_argument("--out", type=Path, help="file to write the tower's head to")
    given = parser.parse_args(argv)
    run(given.model, given.train, given.test, given.clips, given.workers, given.rows, given.out)


if __name__ == "__main__":
    main()
