"""Put what `recipes.pocket.responses` taught beside a model: `python -m recipes.pocket.responses_card --heads FOLDER`.

Copies `MODEL.heads.safetensors` into the model's folder, names its parts in `config.json`, and writes a section of the
model card from the lines of the training.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.models._signals import FILE
from recipes.pocket.responses import ARMS, HEADS, PAIRS
from recipes.pocket.tokenizer import PAD

MODELS = Path("onlooker/models")
TITLE = "## When to speak"


def adopt(folder: Path, heads: Path, rows: Sequence[dict[str, Any]], command: str) -> None:
    """Give a model folder its trained parts."""
    shutil.copyfile(heads, folder / FILE)
    (folder / FILE).chmod(0o644)
    place = folder / "config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    config["onlooker"] |= {"silence": [PAD], "heads": list(HEADS), "decider": {"heads": 8}}
    place.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    card = folder / "MODEL_CARD.md"
    text = card.read_text(encoding="utf-8").partition(f"\n{TITLE}\n")[0].rstrip()
    card.write_text(f"{text}\n\n{section(rows, command)}", encoding="utf-8")


def section(rows: Sequence[dict[str, Any]], command: str) -> str:
    """The card's section: what each part reaches on validation clips, beside its twins."""
    seeds = [row for row in rows if "seed" in row]
    shuffled, forgetful = (
        {row["twin"]: row for row in rows if "twin" in row}[name] for name in ("shuffled", "forgetful")
    )
    first = seeds[0]["heads"]
    lines = [
        TITLE, "",
        f"Small parts beside the frozen model (`{FILE}`, 78 kB), trained by `{command}`;\nthe model is unchanged.",
        "On 512 validation clips of 48 s, levels L0 to L3:", "",
        "| part | average precision | twin, labels of other clips | chance |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, chance in (("informative", "informative"), ("arrival", "arrival"), ("silence", "informative")):
        lines.append(
            f"| `{name}` | {first[name]:.2f} | {shuffled['heads'][name]:.2f} | {first[f'chance_{chance}']:.2f} |"
        )
    lines += [
        "", "The decision net on its own history: requests like \"tell me when a red star appears.\" for "
        f"{len(PAIRS)} coloured shapes.", "",
        "| threshold | told within 3 s (three seeds) | told twice | false alarms an hour | not told what it answered: "
        "told twice |", "|---|---|---|---|---|",
    ]  # fmt: skip
    without = {row["theta"]: row for row in forgetful["net"]}
    for place, row in enumerate(seeds[0]["net"]):
        if row["theta"] not in without:
            continue
        told = ", ".join(f"{seed['net'][place]['told']:.3f}" for seed in seeds)
        lines.append(
            f"| {row['theta']} | {told} | {row['twice']:.2f} | {row['false_an_hour']:.0f} | "
            f"{without[row['theta']]['twice']:.2f} |"
        )
    lines += ["", f"Its twin that learnt from the labels of other clips tells {shuffled['net'][0]['told']:.2f}.", ""]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=Path, required=True, help="folder of MODEL.heads.safetensors")
    parser.add_argument("--rows", type=Path, required=True, help="lines of the training")
    parser.add_argument("--command", required=True, help="the command of the training, for the card")
    given = parser.parse_args(argv)
    rows = [json.loads(line) for line in given.rows.read_text(encoding="utf-8").splitlines()]
    for name in ARMS:
        if (heads := given.heads / f"{name}.{FILE}").is_file():
            mine = [row for row in rows if row["model"] == name]
            adopt(MODELS / name, heads, mine, given.command.format(name))
            print(MODELS / name / FILE)


if __name__ == "__main__":
    main()
