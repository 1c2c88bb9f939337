"""Put what `recipes.pocket.notes` taught into a folder beside the model: `python -m recipes.pocket.notes_card ...`.

The folder shares its neighbour's weights: it holds the adapter, the rows of heads and silence, the settings that a
model folder has, and a card that is written from the lines of the trainings.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.core.errors import InputError
from onlooker.models import _adapter
from onlooker.models._signals import FILE as HEADS_FILE
from recipes.pocket.responses import HEADS
from recipes.pocket.tokenizer import PAD
from recipes.pocket.told import ToldSettings

BASE = Path("onlooker/models/pocket_naive")
FOLDER = Path("onlooker/models/pocket_notes")
COPIED = (
    "chat_template.jinja", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "video_preprocessor_config.json",
)  # fmt: skip
KINDS = {
    "note": "notes of a second, wholly right",
    "note_recall": "... of what happens, told",
    "note_precision": "... of what is told, right",
    "live": "commentary of a second, wholly right",
    "live_recall": "... of what comes, told",
    "live_precision": "... of what is told, right",
    "change": "changes since a caption, wholly right",
    "sum": "sums of captions, wholly right",
    "recalled": "questions that only notes answer",
    "recalled ever": "... did it ever appear",
    "recalled when": "... when",
    "recalled when after a pause": "... when, a minute or more after what was noted",
    "recalled order": "... in which order",
    "recalled since": "... how many",
    "text": "questions behind texts alone",
    "text ever": "... did it ever appear",
    "text when": "... when",
    "text order": "... in which order",
    "text since": "... how many",
    "question": "questions about frames in view",
}


def adopt(base: Path, folder: Path, adapter: Path, heads: Path) -> None:
    """A model folder that adapts its neighbour."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(base / name, folder / name)
    for source, name in ((adapter, _adapter.FILE), (heads, HEADS_FILE)):
        shutil.copyfile(source, folder / name)
        (folder / name).chmod(0o644)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    own = {"adapts": base.name, "silence": [PAD], "heads": list(HEADS), "decider": {"heads": 8, "of": base.name}}
    config["onlooker"] |= own | {"taught_frames": ToldSettings().frames}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def card(checks: dict[str, dict[str, Any]], steps: dict[str, int], size: int, command: str) -> str:
    """What it is, how it was made, and what it reaches beside its twin."""
    arms = list(checks)
    lines = [
        "# pocket-notes", "",
        "`pocket-naive` with low-rank adapters of its decoder that write notes of what happens, comment by the second,",
        f"and read notes. The adapters take {size // 1000} kB; its tower and its other weights are its neighbour's.",
        "Licence: Apache-2.0, as the rest of the package.", "",
        "## How it was made", "", "```bash", command, "```", "",
        f"On Pocket World alone, from its scripts; steps: {', '.join(f'{arm} {steps[arm]}' for arm in arms)}.",
        "Validation clips of 32 seconds, greedy, on its own words:",
        "", f"| share of units | {' | '.join(arms)} |", f"|---|{'---|' * len(arms)}",
    ]  # fmt: skip
    for name, words in KINDS.items():
        if any(name in one for one in checks.values()):
            lines.append(f"| {words} | {' | '.join(_number(one.get(name)) for one in checks.values())} |")
    for name in (*HEADS, "silence"):
        cells = " | ".join(_number(one["heads"][name]) for one in checks.values())
        lines.append(f"| a frame's last token, `{name}`: average precision | {cells} |")
    chance = next(iter(checks.values()))["heads"]
    lines += [
        "", f"Chance of the heads: {chance['chance_informative']:.2f} for `informative` and silence, "
        f"{chance['chance_arrival']:.2f} for `arrival`.", "",
        "## What it cannot do", "",
        "Anything outside Pocket World. Its notes are wrong now and then, and a question that reads a wrong note is",
        "answered wrongly: `benchmarks/notes_memory.py` reports such answers apart.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def last_checked(path: Path) -> dict[str, Any]:
    """The last line of a training that was checked; one that was cut before its check has none, and no card."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    checked = [row for row in rows if "checked" in row]
    if not checked:
        last = max((row.get("step", 0) for row in rows), default=0)
        raise InputError(
            "no row of a training was checked",
            given=f"{path}, cut after {last} steps",
            do="give the training time for its last check (it goes on from its state), or leave this file out",
        )
    return checked[-1]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="adapter.int8.safetensors of the training")
    parser.add_argument("--heads", type=Path, required=True, help="heads.safetensors of the training")
    parser.add_argument("--rows", type=Path, nargs="+", required=True, help="lines of trainings, the taught arm first")
    parser.add_argument("--to", type=Path, default=FOLDER, help="a folder beside that of the model")
    parser.add_argument("--command", required=True, help="the command of the training, for the card")
    given = parser.parse_args(argv)
    checks, steps = {}, {}
    for path in given.rows:
        last = last_checked(path)
        name = f"{last['arm']}, seed {last['seed']}"
        checks[name], steps[name] = last["checked"], last["step"]
    adopt(BASE, given.to, given.adapter, given.heads)
    size = (given.to / _adapter.FILE).stat().st_size
    (given.to / "MODEL_CARD.md").write_text(card(checks, steps, size, given.command), encoding="utf-8")
    print(given.to)


if __name__ == "__main__":
    main()
