"""StreamGaze: past, present and proactive questions about where somebody looks.

Reads one JSON file per task; the task is the `task` field of an entry, or the file's name.

Published scorer (`evaluate_results.py`): the first stand-alone A to D of the upper-cased reply ("A DOG" is an A);
alerts are right when the expected word is in the upper-cased reply ("NO" is in "NOT" and in "KNOW"). Alerts are
averaged over test points; the total is the plain mean of the tasks. Strict: one unambiguous letter; the first yes or
no as a word. Same averages.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import matching
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, mean, test_points
from onlooker.evals.item import Reading
from onlooker.evals.readers._rows import Bad, QuestionRows, by_letter, lines, load, seconds

LAST_MINUTE = ("OI-E", "OI-H", "OAR", "FAP", "present", "future")
ALERTS = ("GTA", "OAA", "proactive")
MARKER = "The green dot in the frames shows where the wearer of the camera looks.\n"


def read(annotations: Path, videos: Path) -> Reading:
    """A file, or a folder of files."""
    rows = QuestionRows(videos, "streamgaze")
    for path in sorted(annotations.glob("*.json")) if annotations.is_dir() else [annotations]:
        for number, entry in enumerate(load(path)):
            for place, question in enumerate(entry.get("questions") or [{}]):
                with rows.row(f"{path.name} entry {number} question {place}"):
                    task = str(entry.get("task") or question.get("task") or path.stem)
                    name = f"gaze-{path.stem}-{number}-{place}"
                    rows.add(_query(rows, name, task, entry, question))
    return rows.reading()


def _query(rows: QuestionRows, name: str, task: str, entry: dict[str, Any], row: dict[str, Any]) -> QueryRecord:
    video = rows.video(entry["video_path"], Path(entry["video_path"]).name)
    words = str(row["question"])
    if points := row.get("test_info"):
        truth = tuple({"t": seconds(p["realtime"]), "expect": _yes_no(p["type"])} for p in points)
        first = min(point["t"] for point in truth)
        prompt = f"{MARKER}{words} Answer with Yes or No."
        return QueryRecord(
            id=name, video=video, benchmark="streamgaze", task=task, family="forward", ask_time=first,
            question=words, answer=str(row.get("target_object", "")), answer_type="yesno", test_points=truth,
            meta={"poll": prompt},
        )  # fmt: skip
    options = by_letter(row["options"], row["answer"])
    prompt = f"{MARKER}Question: {words}\nOptions:\n{lines(options.texts)}\nAnswer with the letter only."
    recent = any(mark.lower() in task.lower() for mark in LAST_MINUTE)
    return QueryRecord(
        id=name, video=video, benchmark="streamgaze", task=task, family="realtime" if recent else "backward",
        ask_time=seconds(row["time_stamp"]), question=words, answer=options.answer, options=options.texts,
        context=(-60.0 if recent else 0.0, None), meta={"prompt": prompt} | options.meta,
    )  # fmt: skip


def _yes_no(kind: Any) -> str:
    if kind not in (0, 1):
        raise Bad(f"type {kind!r} is neither 0 nor 1")
    return "yes" if kind else "no"


def official(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """The published marks, bugs and all."""
    if not query.test_points:
        found = re.search(r"\b([A-D])\b", replies[0].text.upper())
        return [Mark(float(found is not None and found[1] == matching.option_letter(query)))]
    marks = []
    for point in query.test_points:
        said = next((r.text for r in replies if abs(r.t - float(point["t"])) < 1e-3), "")
        marks.append(Mark(float(str(point["expect"]).upper() in said.upper()), f"at {point['t']} s"))
    return marks


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """Ours."""
    if not query.test_points:
        return [Mark(float(matching.chose_right(query, replies[0].text)))]
    return test_points(query, replies, matching.yes_or_no)


def summary(tasks: ByTask) -> dict[str, float]:
    """The plain mean of the tasks."""
    return {"Average": mean([mean(values) for values in tasks.values() if values])}


BENCHMARK = Benchmark(
    read, strict, official, summary, "first stand-alone A-D; expected word in reply; mean of tasks", ("streamgaze",)
)
