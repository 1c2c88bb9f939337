"""How hard the pictures of a level must be for a model, and the table of several models on levels made so hard.

    python -m recipes.pocket.harden --model onlooker/models/pocket_naive --file out/hardness.jsonl
    python -m recipes.pocket.harden --look onlooker/models/pocket_naive onlooker/models/pocket_stc \
        --file out/hardness.jsonl --sealed NAME --to out/looks.jsonl

A step of hardness adds noise, contrast of the ground, and damage; things, motions and questions are drawn as before, so
that answers stay as balanced as they are. Of each level the step is taken whose dense accuracy on validation clips is
nearest to the middle of the gate (`benchmarks.world_gates`). `--look` then looks at models on validation clips of L0
and of the levels as they were chosen, and on sealed ones; a line for each, as `evaluate` writes them.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from onlooker.world import LEVEL_NAMES, LEVELS, Level
from recipes.pocket.data import make_set
from recipes.pocket.evaluate import evaluate, load_checkpoint, sealed_look, sealed_seed
from recipes.pocket.model import Pocket
from recipes.pocket.tokenizer import Encoder

MIDDLE = 0.86
"""Dense accuracy that is aimed at: the middle of .80 to .92."""
GATES = ("dense", "last=1", "keep=19", "oracle=19")
FIRST_SEED = 2000
"""Validation seeds from here on: not those that trainings are looked at with."""


def harder(level: Level, step: int) -> Level:
    """The level with `step` steps of hardness added to its pictures."""
    (low, high), (flat, strong) = level.noise_sigma, level.contrast
    return replace(
        level,
        noise_sigma=(low + 4.0 * step, high + 6.0 * step),
        contrast=(flat + 6.0 * step, strong + 8.0 * step),
        damage_share=round(min(0.9, level.damage_share + 0.07 * step), 2),
        damage=round(min(0.9, level.damage + 0.07 * step), 2),
    )


def choose(path: Path, levels: Sequence[str], steps: int, clips: int, workers: int, file: Path) -> None:
    """Try steps of hardness with a model, and write what each gives and which is taken."""
    plain, tried = dict(LEVELS), {}
    for name in levels:
        for step in range(steps):
            # Workers are forked, and see the level as it stands in the table then.
            LEVELS[name] = harder(plain[name], step)
            tried[name, step] = make_set("validation", clips, FIRST_SEED, workers=workers, level=name)
    model, encoder, device, dtype = ready(path)
    for name in levels:
        dense = {}
        for step in range(steps):
            scores = evaluate(model, encoder, tried[name, step], ("dense", "last=1"), device, dtype)
            dense[step] = scores["dense"]["all"]
            note(file, {"level": name, "step": step, "model": path.name, "hardness": scores})
        step = min(dense, key=lambda step: abs(dense[step] - MIDDLE))
        chosen = asdict(harder(plain[name], step))
        note(file, {"level": name, "chosen": step, "dense": dense[step], "is": chosen})


def look(
    paths: Sequence[Path], file: Path, only: Sequence[str], sealed: str, clips: int, gate_clips: int, workers: int,
    to: Path,
) -> None:  # fmt: skip
    """Look at models on L0 and the levels that `choose` wrote, or on those of them that `only` names."""
    names = ["L0"]
    for line in map(json.loads, file.read_text().splitlines()):
        if "chosen" in line:
            fields = {name: tuple(v) if isinstance(v, list) else v for name, v in line["is"].items()}
            LEVELS[line["level"]] = Level(**fields)
            names.append(line["level"])
    names = [name for name in names if name in only or not only]
    first = sealed_seed(sealed)
    gates = {name: make_set("validation", gate_clips, workers=workers, level=name) for name in names}
    shut = {name: make_set("test", clips, first, workers=workers, level=name) for name in names}
    for path in paths:
        model, encoder, device, dtype = ready(path)
        for name, data in gates.items():
            note(to, {"arm": path.name, "level": name, "validation": evaluate(
                model, encoder, data, GATES, device, dtype)})  # fmt: skip
        sealed_look(model, encoder, shut, device, dtype, to, {"arm": path.name})


def ready(path: Path) -> tuple[Pocket, Encoder, torch.device, torch.dtype]:
    """A model on the device that there is, and its number format."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.enable_cudnn_sdp(False)
    return *load_checkpoint(path, device), device, torch.bfloat16 if device.type == "cuda" else torch.float32


def note(file: Path, line: dict) -> None:
    """Add a line to a file and show it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    print(json.dumps(line)[:400], flush=True)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--model", type=Path, help="the model that levels are made hard for")
    work.add_argument("--look", type=Path, nargs="+", help="models to look at on the levels as they were chosen")
    parser.add_argument("--file", type=Path, required=True, help="file of what was tried and chosen")
    parser.add_argument(
        "--levels", nargs="+", choices=LEVEL_NAMES, default=[],
        help="levels to harden (L2 and L3), or to look at (L0 and all that were hardened)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=7, help="steps of hardness to try, from 0 on")
    parser.add_argument("--clips", type=int, help="clips of each step (64), or sealed ones of each level (192)")
    parser.add_argument("--gate-clips", type=int, default=128, help="validation clips of each level for --look")
    parser.add_argument("--sealed", default="", help="name of the sealed clips for --look")
    parser.add_argument("--to", type=Path, help="file that --look adds its lines to")
    parser.add_argument("--workers", type=int, default=14, help="processes that make clips")
    given = parser.parse_args(argv)
    if given.model and "L0" in given.levels:
        parser.error("L0 stays as it is: harden other levels")
    if given.model:
        choose(given.model, given.levels or ["L2", "L3"], given.steps, given.clips or 64, given.workers, given.file)
    elif not given.sealed or not given.to:
        parser.error("--look needs --sealed NAME and --to FILE")
    else:
        look(
            given.look, given.file, given.levels, given.sealed, given.clips or 192, given.gate_clips, given.workers,
            given.to,
        )  # fmt: skip


if __name__ == "__main__":
    main()
