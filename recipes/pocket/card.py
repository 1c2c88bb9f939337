"""Write a model card and its loss curve: `python -m recipes.pocket.card --branch pocket ...`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from onlooker.world import TASKS
from recipes.pocket.export import FOLDERS
from recipes.pocket.model import PocketSizes

_NAMES = {"pocket": "pocket", "aware": "pocket-aware"}
_COLOURS = {"answers": (31, 88, 170), "labels": (214, 110, 20), "right": (36, 140, 70)}


def read_history(path: Path, branches: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Curves over minutes (the branches one after the other): answer loss, label loss, mean share of right answers."""
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in _COLOURS}
    before = 0.0
    for branch in branches:
        last = 0.0
        for line in map(json.loads, path.read_text().splitlines()):
            if line["branch"] != branch or "validation" in line:
                continue
            last = line["seconds"]
            minutes = (before + last) / 60
            for name in ("answers", "labels"):
                if name in line:
                    curves[name].append((minutes, line[name]))
            if "right" in line:
                curves["right"].append((minutes, sum(line["right"].values()) / len(line["right"])))
        before += last
    return curves


def draw_curves(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """A plain picture of the curves."""
    width, height, left, bottom, top = 900, 420, 60, 50, 30
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    last = max(x for points in curves.values() for x, _ in points)
    high = max([2.0, *(y for name in ("answers", "labels") for _, y in curves[name][2:])])
    high = min(high, 4.0)

    def at(x: float, y: float, most: float) -> tuple[float, float]:
        down = min(1.0, max(0.0, y / most))
        return left + (width - left - 60) * x / last, height - bottom - (height - bottom - top) * down

    for part in range(5):
        y = at(0, part / 4, 1.0)[1]
        pen.line([(left, y), (width - 60, y)], fill=(225, 225, 225))
        pen.text((8, y - 6), f"{high * part / 4:.2f}", fill="black")
        pen.text((width - 50, y - 6), f"{part * 25} %", fill=_COLOURS["right"])
    for minute in range(0, int(last) + 1, max(1, int(last) // 12)):
        x = at(minute, 0, 1.0)[0]
        pen.line([(x, height - bottom), (x, height - bottom + 4)], fill="black")
        pen.text((x - 4, height - bottom + 8), str(minute), fill="black")
    texts = {"answers": "loss of answers", "labels": "loss of patch labels", "right": "right answers in training"}
    for place, (name, points) in enumerate(curves.items()):
        most = 1.0 if name == "right" else high
        if len(points) > 1:
            pen.line([at(x, y, most) for x, y in points], fill=_COLOURS[name], width=2)
        pen.text((left + 220 * place, 8), texts[name], fill=_COLOURS[name])
    pen.text((width // 2 - 60, height - 20), "minutes of training", fill="black")
    picture.save(path, optimize=True)


def write_card(branch: str, rows: Sequence[dict], history: Path, folder: Path, command: str, hardware: str) -> None:
    """`MODEL_CARD.md` and `training.png` in `folder`, from the rows of `benchmarks.pocket_table`.

    Raises `ValueError` when the rows lack this model with nothing saved.
    """
    draw_curves(read_history(history, ("trunk", branch)), folder / "training.png")
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    steps = {b: max((line["step"] for line in lines if line["branch"] == b), default=0) for b in ("trunk", branch)}
    name, sizes = _NAMES[branch], PocketSizes()
    mine = [row for row in rows if row["model"] == name]
    dense = next(
        (r for r in mine if (r["encoder"], r["compressor"], r["memory"]) == ("full", "identity", "full")), None
    )
    if dense is None:
        raise ValueError(f"the scores hold no dense row of {name}: run benchmarks.pocket_table first")
    size = (folder / "model.safetensors").stat().st_size if (folder / "model.safetensors").exists() else 0
    spans = "\n".join(
        f"| {task} | {TASKS[task][1]} | {right:.3f} | {low:.3f} to {high:.3f} |"
        for task, (right, low, high) in dense["tasks"].items()
    )
    settings = "\n".join(
        f"| {r['encoder']} | {r['compressor']} | {r['memory']} "
        f"| {r['accuracy']:.3f} ({r['low']:.3f} to {r['high']:.3f}) | {r['asked']} | {r['context_tokens']} |"
        for r in mine
    )
    taught = {
        "pocket": "It never saw STC-Cacher's features in training, as no published model did.",
        "aware": "More than half of its last batches were encoded by STC-Cacher (N 2, 4, 8, never; r 0.15 to 0.40).",
    }[branch]
    weak = [f"`{task}` ({right:.0%})" for task, (right, _, _) in dense["tasks"].items() if right < 0.65]
    (folder / "MODEL_CARD.md").write_text(f"""# {name}

A video language model of {size / 1e6:.1f} MB that ships with Onlooker, so that streaming methods can be
tried and tested anywhere. It was trained from nothing on Pocket World, a procedural video world.
**It understands that world and no other**: it cannot describe photographs, films or your camera, and it knows no
language beyond its questions.
{taught}

- Format: LLaVA-OneVision of Transformers (SigLIP tower, projector, Qwen2 decoder), bfloat16, own byte-level tokenizer.
- Sizes: {sizes.image} px frames, patch {sizes.patch}, tower {sizes.vision_layers} x {sizes.vision_dim}, decoder \
{sizes.layers} x {sizes.dim}, {sizes.frame_tokens} visual tokens a frame.
- Prompt: system text, then for each frame its stream time as `[mm:ss]` and its visual tokens, then the newline
  embedding and the question. Key `onlooker` of `config.json` says so to the adapter.
- Training: `{command}`
  ({steps["trunk"]} steps of the trunk, {steps[branch]} of the branch; {hardware}); split `train` of Pocket World, seeds
  from 0; 16, 24 or 48 frames a clip.
- Evaluation: `python -m benchmarks.pocket_table`: {dense["suite"]}, greedy, strict matching, clock times within 1.5 s;
  {dense["hardware"]}, torch {dense["torch"]}, transformers {dense["transformers"]}, commit {dense["commit"]}.

![Loss over the training](training.png)

## Accuracy by category, nothing saved

{dense["accuracy"]:.3f} ({dense["low"]:.3f} to {dense["high"]:.3f}) of {dense["asked"]} questions; 95 % intervals from \
resampling clips.

| category | what is asked | right | interval |
| --- | --- | --- | --- |
{spans}

## What saving costs

`context` is the mean number of tokens an answer could see.

| encoder | compressor | memory | right | questions | context |
| --- | --- | --- | --- | --- | --- |
{settings}

## What it cannot do

{"Weakest, and below what we want: " + ", ".join(weak) + "." if weak else ""}
Anything outside Pocket World: other pictures, other words, free conversation, sound. Times beyond 99 minutes wrap
around. More than about 48 frames in view at once, or more than 3,300 positions, were not in its training.
""")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--branch", choices=tuple(FOLDERS), required=True, help="which model")
    parser.add_argument("--scores", type=Path, required=True, help="what benchmarks.pocket_table wrote with --out")
    parser.add_argument("--history", type=Path, default=Path("out/pocket/history.jsonl"), help="what train.py wrote")
    parser.add_argument("--to", type=Path, help="folder of the model; by default where the package keeps it")
    parser.add_argument("--command", required=True, help="the training command, as it was run")
    parser.add_argument("--hardware", default="one NVIDIA H200", help="what it ran on")
    given = parser.parse_args(argv)
    folder = given.to or FOLDERS[given.branch]
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in given.scores.read_text().splitlines()]
    write_card(given.branch, rows, given.history, folder, given.command, given.hardware)
    print(folder / "MODEL_CARD.md")


if __name__ == "__main__":
    main()
