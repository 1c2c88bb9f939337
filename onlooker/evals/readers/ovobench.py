"""OVO-Bench (Li et al., CVPR 2025): backward tracing, real-time perception, forward responding.

Reads `ovo_bench_new.json` with either the original videos or the published chunks (`{id}.mp4`, `{id}_{i}.mp4`).

Published scorer (`utils/OVOBenchScore.py`): multiple choice is right when the gold letter occurs anywhere in the reply
("Answer: B" contains an A; a list of all letters scores 100 %); REC when all digits of the reply, joined, are the count
("2 or 3" is 23); SSR and CRR when the reply is "Y"/"N" or contains "Yes"/"No" ("Not sure" contains No). A task is the
mean over its test points, a family the mean of its tasks, Total the mean of the three families.
Strict: one unambiguous letter; the first number; the first yes or no as a word. Same averages.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import matching
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, group_means, mean, test_points
from onlooker.evals.item import Reading
from onlooker.evals.readers._rows import Bad, Rows, load, plain_options, seconds

FAMILIES = {
    "Backward": ("EPM", "ASI", "HLD"),
    "Real-time": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "Forward": ("REC", "SSR", "CRR"),
}
_FAMILY = {task: family for family, tasks in FAMILIES.items() for task in tasks}


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file; test points become polls of one standing question."""
    rows = Rows(videos, "ovobench")
    for number, row in enumerate(load(annotations)):
        points = len(row.get("test_info") or ()) if isinstance(row, dict) else 1
        with rows.row(f"{annotations.name} row {number}", max(1, points)):
            if row["task"] not in _FAMILY:
                raise Bad(f"unknown task {row['task']!r}")
            for query in _choice(rows, row) if "options" in row else _forward(rows, row):
                rows.add(query)
    return rows.reading()


def _choice(rows: Rows, row: dict[str, Any]) -> list[QueryRecord]:
    options = plain_options(row["options"])
    gold = row["gt"]
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(options):
        raise Bad(f"gt {gold!r} is none of {len(options)} options")
    listed = " ".join(f"{chr(65 + place)}. {option};" for place, option in enumerate(options))
    prompt = f"Question: {row['question']}\nOptions: {listed}\nAnswer with the letter only."
    return [
        QueryRecord(
            id=f"ovo-{row['id']}", video=rows.video(row["video"], f"{row['id']}"), benchmark="ovobench",
            task=row["task"], family=_FAMILY[row["task"]], ask_time=seconds(row["realtime"]), question=row["question"],
            answer=options[gold], options=options, meta={"prompt": prompt, "lettered": True},
        )
    ]  # fmt: skip


def _forward(rows: Rows, row: dict[str, Any]) -> list[QueryRecord]:
    task, points = row["task"], row["test_info"]
    if not points:
        raise Bad("no test points")
    video = rows.video(row["video"])
    if task == "REC":
        poll = f"How many times did they {row['activity']} so far, whoever did it? Answer with one number."
        truth = [{"t": seconds(p["realtime"]), "expect": str(int(p["count"]))} for p in points]
        windows = tuple((seconds(end), seconds(end) + 2.0) for end in row.get("end_times", ()))
        return [_polled(row, video, "", poll, truth, windows, "count")]
    if task == "CRR":
        poll = (
            f"Can this question be answered from the latest frames? Question: {row['question']} Answer with Yes or No."
        )
        clue_s = seconds(row["clue_time"])
        truth = [{"t": seconds(p["realtime"]), "expect": _yes_no(p["type"])} for p in points]
        return [_polled(row, video, "", poll, truth, ((clue_s, clue_s + 30.0),), "yesno", seconds(row["ask_time"]))]
    spans = list(zip(row["start_time"], row["end_time"], strict=True))
    queries = []
    for step in sorted({p["step"] for p in points}, key=str):
        poll = f'Is this step of "{row["tutorial"]}" being carried out now: {step}? Answer with Yes or No.'
        truth = [{"t": seconds(p["realtime"]), "expect": _yes_no(p["type"])} for p in points if p["step"] == step]
        place = row["all_steps"].index(step) if step in row["all_steps"] else None
        windows = (tuple(map(seconds, spans[place])),) if place is not None and place < len(spans) else ()
        queries.append(_polled(row, video, f"-{len(queries)}", poll, truth, windows, "yesno"))
    return queries


def _polled(
    row: dict[str, Any], video: str, suffix: str, poll: str, truth: list[dict[str, Any]], windows: Any, kind: Any,
    ask_s: float | None = None,
) -> QueryRecord:  # fmt: skip
    first = min(point["t"] for point in truth)
    return QueryRecord(
        id=f"ovo-{row['id']}{suffix}", video=video, benchmark="ovobench", task=row["task"], family="Forward",
        ask_time=first if ask_s is None else min(first, ask_s), question=row.get("question") or poll,
        answer=str(row.get("answer", truth[-1]["expect"])), answer_type=kind, windows=windows,
        test_points=tuple(sorted(truth, key=lambda point: point["t"])), meta={"poll": poll},
    )  # fmt: skip


def _yes_no(kind: Any) -> str:
    if kind not in (0, 1):
        raise Bad(f"type {kind!r} is neither 0 nor 1")
    return "yes" if kind else "no"


def official(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """The published marks, bugs and all."""
    if not query.test_points:
        return [Mark(float(matching.option_letter(query) in replies[0].text))]
    if query.answer_type == "count":
        return test_points(query, replies, lambda text: "".join(re.findall(r"\d+", text)))
    marks = []
    for point, mark in zip(query.test_points, test_points(query, replies, lambda text: text), strict=True):
        said = next((r.text for r in replies if abs(r.t - float(point["t"])) < 1e-3), "")
        word = "Yes" if point["expect"] == "yes" else "No"
        marks.append(Mark(float(said == word[0] or word in said), mark.what))
    return marks


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """Ours."""
    if not query.test_points:
        return [Mark(float(matching.chose_right(query, replies[0].text)))]
    if query.answer_type == "count":
        return test_points(query, replies, lambda text: str(matching.number(text)))
    return test_points(query, replies, matching.yes_or_no)


def summary(tasks: ByTask) -> dict[str, float]:
    """Families and Total."""
    families = group_means(tasks, FAMILIES)
    return families | ({"Total": mean(list(families.values()))} if len(families) == len(FAMILIES) else {})


BENCHMARK = Benchmark(
    read,
    strict,
    official,
    summary,
    "letter in reply; joined digits; 'Yes' in reply; mean of the means of three families",
)
