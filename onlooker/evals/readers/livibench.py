"""LiViBench (2026): 24 tasks on interactive livestreams, with speech and the comments of the audience beside them.

Reads a list of `{video (or video_path), question, options, answer, task (or task_type), group?, comments?, asr?}`;
`comments` and `asr` are lists of `{time (or start, end), text}`. The published files were not to be had when this was
written: the names of the fields are ours, the form (whole video, letters, side text) is the paper's.

Side text goes with the video as `side` (kinds "comment" and "asr"); which of it a model is shown is the method's
business. Published scorer: the letter; share of right answers. Strict: one unambiguous letter. Same averages.
"""

from pathlib import Path
from typing import Any

from onlooker.evals.benchmark import Benchmark, ByTask, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _choices
from onlooker.evals.readers._rows import Bad, QuestionRows, by_any, load, seconds

GROUPS = ("coarse", "fine", "knowledge", "reasoning", "livestream")
_SIDES = {"comments": "comment", "asr": "asr"}
_SHORT_S = 1.0
"""How long a comment that has one time only is taken to stand."""


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file."""
    rows = QuestionRows(videos, "livibench")
    for number, row in enumerate(load(annotations)):
        with rows.row(f"{annotations.name} row {number}"):
            path = str(row.get("video_path") or row["video"])
            video = rows.video(path, Path(path).name, side=_side(row))
            options = by_any(row["options"], row["answer"])
            group = str(row.get("group", ""))
            if group and group not in GROUPS:
                raise Bad(f"the group {group!r} is none of {', '.join(GROUPS)}")
            query = _choices.at_the_end(
                rows, "livibench", f"livi-{number}", video, str(row.get("task") or row["task_type"]), row["question"],
                options, meta={"group": group},
            )  # fmt: skip
            rows.add(query)
    return rows.reading()


def _side(row: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    found = []
    for name, kind in _SIDES.items():
        for line in row.get(name) or ():
            start = seconds(line["time"] if "time" in line else line["start"])
            end = max(seconds(line.get("end", start)), start + _SHORT_S)
            found.append({"kind": kind, "t0": start, "t1": end, "text": str(line["text"])})
    return tuple(sorted(found, key=lambda line: line["t0"]))


def summary(tasks: ByTask) -> dict[str, float]:
    """Over all questions."""
    return {"Overall": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(read, _choices.strict, None, summary, "share of right letters")
