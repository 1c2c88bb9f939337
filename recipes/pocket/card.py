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


def write_card(branch: str, scores: dict, history: Path, folder: Path, command: str, hardware: str) -> None:
    """`MODEL_CARD.md` and `training.png` in `folder`."""
    draw_curves(read_history(history, ("trunk", branch)), folder / "training.png")
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    steps = {b: max((line["step"] for line in lines if line["branch"] == b), default=0) for b in ("trunk", branch)}
    answers, name, sizes = scores["models"][branch]["answers"], _NAMES[branch], PocketSizes()
    size = (folder / "model.safetensors").stat().st_size if (folder / "model.safetensors").exists() else 0
    rows = "\n".join(
        f"| {setting} | {row['all']:.3f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f}) | "
        + " | ".join(f"{row[task]:.2f}" if task in row else "-" for task in TASKS) + " |"
        for setting, row in answers.items()
    )  # fmt: skip
    spans = "\n".join(
        f"| {task} | {TASKS[task][1]} | {answers['dense'][task]:.3f} | {a:.3f} to {b:.3f} |"
        for task, (a, b) in answers["dense"]["task_intervals"].items()
    )
    taught = {
        "pocket": "It never saw STC-Cacher's features in training, as no published model did.",
        "aware": "More than half of its last batches were encoded by STC-Cacher (N 2, 4, 8, never; r 0.15 to 0.40).",
    }[branch]
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
  from 0; 16, 24 or 48 frames a clip. Loss curve: `training.png`.
- Evaluation: `python -m recipes.pocket.evaluate`, split `{scores["split"]}`, {scores["clips"]} clips of \
{scores["frames"]} frames at {scores["fps"]} a second, seeds from {scores["first_seed"]}, 8 questions each, greedy,
  {scores["precision"]} on {scores["device"]}, torch {scores["torch"]}. Clock times count within 1.5 s.

## Accuracy by task, dense

95 % intervals by bootstrap over clips.

| task | what is asked | right | interval |
| --- | --- | --- | --- |
{spans}

## What compression costs

`all` weighs every task the same. cacher=N:r refreshes every N frames (0: only the first) and recomputes the share r;
keep=k keeps k of {sizes.frame_tokens} tokens at random, stc=k by STC-Pruner's score; blind sees no frame.

| setting | all | {" | ".join(TASKS)} |
| --- | --- | {" | ".join("---" for _ in TASKS)} |
{rows}

## What it cannot do

Anything outside Pocket World: other pictures, other words, free conversation, sound. Times beyond 99 minutes wrap
around. More than about 48 frames in view at once, or more than 3,300 positions, were not in its training.
""")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--branch", choices=tuple(FOLDERS), required=True, help="which model")
    parser.add_argument("--scores", type=Path, required=True, help="what evaluate.py wrote with --json")
    parser.add_argument("--history", type=Path, default=Path("out/pocket/history.jsonl"), help="what train.py wrote")
    parser.add_argument("--to", type=Path, help="folder of the model; by default where the package keeps it")
    parser.add_argument("--command", required=True, help="the training command, as it was run")
    parser.add_argument("--hardware", default="one NVIDIA H200", help="what it ran on")
    given = parser.parse_args(argv)
    folder = given.to or FOLDERS[given.branch]
    folder.mkdir(parents=True, exist_ok=True)
    scores = json.loads(given.scores.read_text())
    write_card(given.branch, scores, given.history, folder, given.command, given.hardware)
    print(folder / "MODEL_CARD.md")


if __name__ == "__main__":
    main()
