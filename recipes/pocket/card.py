"""Write a model card and its loss curve: `python -m recipes.pocket.card --arm naive --history FILE`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from onlooker.evals.statistics import estimate
from onlooker.world import LEVEL_TASKS, TASKS
from recipes.pocket.export import FOLDERS, NAMES
from recipes.pocket.model import PocketSizes

_COLOURS = {"answers": (31, 88, 170), "labels": (214, 110, 20), "right": (36, 140, 70)}


@dataclass(frozen=True)
class Look:
    """The last look of a training at one level."""

    level: str
    scores: dict[str, dict]
    """Setting to shares, as `evaluate` gives them."""
    marks: dict[str, str]
    """Setting to every mark; empty for a look at validation clips."""
    first_seed: int = 0


def read_history(path: Path) -> list[dict]:
    """The lines that `train.py` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def last_looks(lines: Sequence[dict]) -> list[Look]:
    """The sealed looks, or where there are none those at validation clips after the last step.

    Raises `ValueError` when the training has not come to its end.
    """
    sealed = [Look(row["level"], row["sealed"], row["marks"], row["first_seed"]) for row in lines if "sealed" in row]
    validation = [row for row in lines if len(row.get("validation", ())) > 1]
    found = sealed or [Look(row["level"], row["validation"], {}) for row in validation]
    if not found:
        raise ValueError("the history holds no look after the last step: the training has not come to its end")
    return found


def curves_of(lines: Sequence[dict]) -> dict[str, list[tuple[float, float]]]:
    """Curves over minutes: answer loss, label loss, mean share of right answers."""
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in _COLOURS}
    for line in lines:
        minutes = line.get("seconds", 0.0) / 60
        for name in ("answers", "labels"):
            if name in line:
                curves[name].append((minutes, line[name]))
        if "right" in line:
            curves["right"].append((minutes, sum(line["right"].values()) / len(line["right"])))
    return curves


def interval(marks: str) -> tuple[float, float]:
    """95 % interval of the share of right marks over clips, as in every table; `marks` is that of `evaluate`."""
    found = [(clip, float(mark)) for clip, text in enumerate(marks.split(" ")) for mark in text]
    share = estimate([mark for _, mark in found], [str(clip) for clip, _ in found])
    return share.low, share.high


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


SETTINGS = {
    "dense": "all tokens, dense tower", "cacher=4:0.25": "STC-Cacher as published, N=4, r=.25",
    "stc=19": "STC-Pruner, 19 of 64 tokens", "cacher=4:0.25,stc=19": "both", "keep=19": "19 tokens at random",
    "uniform=19": "19 tokens, uniform", "oracle=19": "19 tokens chosen by ground truth", "every=4": "every 4th frame",
    "last=4": "the last 4 frames", "last=1": "the last frame", "blind": "the question alone",
}  # fmt: skip
"""What a setting of `evaluate` means, in the order of the table."""
TAUGHT = {
    "naive": "It saw every token of every frame, always: no dropping, no Cacher. What a method costs on it is what the "
    "method costs without training for it; it is the only one of the three that may be called training-free.",
    "neutral": "From 40 % of the training on, three batches in four kept only some tokens (48, 32, 19 or 12 of 64), at "
    "random or uniformly spaced, and a quarter of the questions could not look at some frames. No named method chose.",
    "aware": "From 40 % of the training on, three batches in four kept only the tokens that STC-Pruner chooses, and "
    "six in ten were encoded by STC-Cacher as published (N 2, 4, 8 or never, r .15 to .40). It knows both methods.",
}


def settings_table(looks: Sequence[Look]) -> str:
    """Markdown rows: setting, then share of right marks (with its interval where every mark is known) by level."""
    rows = ["| setting | " + " | ".join(look.level for look in looks) + " |", "|---|" + "---|" * len(looks)]
    for setting, meaning in SETTINGS.items():
        if setting not in looks[0].scores:
            continue
        cells = []
        for look in looks:
            span = "{:.3f} to {:.3f}".format(*interval(look.marks[setting])) if look.marks else ""
            cells.append(f"{look.scores[setting]['all']:.3f}" + (f" ({span})" if span else ""))
        rows.append(f"| {meaning} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def tasks_table(looks: Sequence[Look]) -> str:
    """Markdown rows: category, then the dense share for every level."""
    rows = ["| category | " + " | ".join(look.level for look in looks) + " |", "|---|" + "---|" * len(looks)]
    for task in dict.fromkeys([*TASKS, *LEVEL_TASKS]):
        found = [look.scores["dense"].get(task) for look in looks]
        if any(value is not None for value in found):
            rows.append(f"| {task} | " + " | ".join("-" if v is None else f"{v:.2f}" for v in found) + " |")
    return "\n".join(rows)


def weak_spots(looks: Sequence[Look]) -> str:
    """A sentence about categories below 0.6 at some level; empty when there are none."""
    weak = {
        task: min(value for look in looks if (value := look.scores["dense"].get(task)) is not None)
        for task in dict.fromkeys([*TASKS, *LEVEL_TASKS])
        if any(task in look.scores["dense"] for look in looks)
    }
    names = [f"`{task}` ({share:.2f})" for task, share in weak.items() if share < 0.6]
    return f"Weakest: {', '.join(names)}. It was trained for eight minutes and was still learning.\n" if names else ""


def write_card(arm: str, lines: Sequence[dict], folder: Path, command: str, hardware: str) -> None:
    """`MODEL_CARD.md` and `training.png` in `folder`."""
    draw_curves(curves_of(lines), folder / "training.png")
    sizes = PocketSizes()
    steps = max(line["step"] for line in lines)
    looks = last_looks(lines)
    if looks[0].marks:
        num = len(looks[0].marks["dense"].split(" "))
        answers = ", ".join(f"{len(look.marks['dense'].replace(' ', ''))} at {look.level}" for look in looks)
        clips = f"""## Accuracy on sealed clips

{num} test clips a level that nothing was chosen on, opened once after the last step ({answers}; seeds from
{looks[0].first_seed}). Greedy, strict matching, clock times within 1.5 s; every mark weighs the same; 95 % intervals
over clips (`onlooker.evals.statistics.estimate`). Computed by the recipe in bfloat16, from the weights at the end of
the training."""
    else:
        clips = """## Accuracy on validation clips

After the last step, on clips that were looked at during the training as well (nothing was chosen on them). Greedy,
strict matching, clock times within 1.5 s; every mark weighs the same. Computed by the recipe in bfloat16."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    (folder / "MODEL_CARD.md").write_text(f"""# {NAMES[arm]}

A video language model of {size / 1e6:.1f} MB that ships with Onlooker, so that streaming methods can be tried and
tested anywhere. It was trained from nothing on Pocket World, a procedural video world, levels L0 to L4.
**It understands that world and no other**: it cannot describe photographs, films or your camera, and it knows no
language beyond its questions.

**Training mix.** {TAUGHT[arm]}
The three arms (`pocket-naive`, `pocket-neutral`, `pocket-stc`) learn from the same source of clips for 4,100 to 4,221
steps. They differ in what they see of dropped and reused tokens; besides, a quarter of the questions of the other
two cannot look at frames that they do not need, which `pocket-naive` never meets.

- Format: LLaVA-OneVision of Transformers (SigLIP tower, projector, Qwen2 decoder), own byte-level tokenizer. Weights
  are kept in eight bits, one scale a row, and are plain once loaded.
- Sizes: {sizes.image} px frames, patch {sizes.patch}, tower {sizes.vision_layers} x {sizes.vision_dim}, decoder \
{sizes.layers} x {sizes.dim}, {sizes.frame_tokens} visual tokens a frame.
- Prompt: system text, then for each frame its stream time as `[mm:ss]` and its visual tokens, then the newline
  embedding and the question. Key `onlooker` of `config.json` says so to the adapter.
- Training: `{command}` ({steps} steps; {hardware}).

![Loss over the training](training.png)

{clips}

{settings_table(looks)}

## By category, dense

{tasks_table(looks)}

## What it cannot do

{weak_spots(looks)}Anything outside Pocket World: other pictures, other words, free conversation, sound. Times beyond
99 minutes wrap around. More than about 48 frames in view at once were not in its training.
""")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--arm", choices=tuple(FOLDERS), required=True, help="which model")
    parser.add_argument("--history", type=Path, required=True, help="ARM.history.jsonl that train.py wrote")
    parser.add_argument("--to", type=Path, help="folder of the model; by default where the package keeps it")
    parser.add_argument("--command", required=True, help="the training command, as it was run")
    parser.add_argument("--hardware", default="one NVIDIA H100", help="what it ran on")
    given = parser.parse_args(argv)
    folder = given.to or FOLDERS[given.arm]
    folder.mkdir(parents=True, exist_ok=True)
    write_card(given.arm, read_history(given.history), folder, given.command, given.hardware)
    print(folder / "MODEL_CARD.md")


if __name__ == "__main__":
    main()
