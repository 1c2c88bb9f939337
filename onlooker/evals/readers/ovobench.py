"""OVO-Bench (Li et al., CVPR 2025): backward tracing, real-time perception, forward responding.

Reads `ovo_bench_new.json` with either the original videos or the published chunks: `{id}.mp4`, and `{id}_{i}.mp4` for
test point i of a forward item. Every test point is a question of its own, as the benchmark counts them (3,035).

Published scorer (`utils/OVOBenchScore.py`): multiple choice is right when the gold letter occurs anywhere in the reply
("Answer: B" contains an A; a list of all letters scores 100 %); REC when all digits of the reply, joined, are the count
("2 or 3" is 23); SSR and CRR when the reply is "Y"/"N" or contains "Yes"/"No" ("Not sure" contains No). A task is the
mean over its test points, a family the mean of its tasks, Total the mean of the three families.
Strict: one unambiguous letter; the first number; the first yes or no as a word. Same averages.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onlooker.core.records import QueryRecord, ReplyRecord, Span
from onlooker.evals import matching
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, group_means, mean, test_points
from onlooker.evals.item import Reading
from onlooker.evals.readers._rows import Bad, QuestionRows, by_number, load, seconds

FAMILIES = {
    "Backward": ("EPM", "ASI", "HLD"),
    "Real-time": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "Forward": ("REC", "SSR", "CRR"),
}
_FAMILY = {task: family for family, tasks in FAMILIES.items() for task in tasks}


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file; a test point is a question put at its time."""
    rows = QuestionRows(videos, "ovobench")
    for number, row in enumerate(load(annotations)):
        points = len(row.get("test_info") or ()) if isinstance(row, dict) else 1
        where = f"{annotations.name} row {number}"
        with rows.row(where, max(1, points)):
            if row["task"] not in _FAMILY:
                raise Bad(f"unknown task {row['task']!r}")
            if "options" in row:
                _choice(rows, row)
            else:
                _forward(rows, row, where)
    return rows.reading()


def _choice(rows: QuestionRows, row: dict[str, Any]) -> None:
    options = by_number(row["options"], row["gt"])
    listed = " ".join(f"{chr(65 + place)}. {option};" for place, option in enumerate(options.texts))
    prompt = f"Question: {row['question']}\nOptions: {listed}\nAnswer with the letter only."
    query = QueryRecord(
        id=f"ovo-{row['id']}", video=rows.video(row["video"], str(row["id"])), benchmark="ovobench",
        task=row["task"], family=_FAMILY[row["task"]], ask_time=seconds(row["realtime"]), question=row["question"],
        answer=options.answer, options=options.texts, meta={"prompt": prompt} | options.meta,
    )  # fmt: skip
    rows.add(query)


def _forward(rows: QuestionRows, row: dict[str, Any], where: str) -> None:
    if not row["test_info"]:
        raise Bad("no test points")
    of_task = {"REC": _repetition, "SSR": _step, "CRR": _clue}[row["task"]]
    for number, point in enumerate(row["test_info"]):
        with rows.row(f"{where} test point {number}"):
            asked = of_task(row, point)
            query = QueryRecord(
                id=f"ovo-{row['id']}_{number}", video=rows.video(row["video"], f"{row['id']}_{number}"),
                benchmark="ovobench", task=row["task"], family="Forward", ask_time=seconds(point["realtime"]),
                question=asked.words, answer=asked.truth, answer_type=asked.kind, windows=asked.windows,
                test_points=({"t": seconds(point["realtime"]), "expect": asked.truth},), group=f"ovo-{row['id']}",
                order=number, meta={"poll": asked.poll},
            )  # fmt: skip
            rows.add(query)


@dataclass(frozen=True)
class _Asked:
    """What is asked at a test point."""

    words: str
    poll: str
    truth: str
    kind: Literal["count", "yesno"]
    windows: tuple[Span, ...]


def _repetition(row: dict[str, Any], point: dict[str, Any]) -> _Asked:
    poll = f"How many times did they {row['activity']} so far, whoever did it? Answer with one number."
    windows = tuple((seconds(end), seconds(end) + 2.0) for end in row.get("end_times", ()))
    return _Asked(poll, poll, str(int(point["count"])), "count", windows)


def _clue(row: dict[str, Any], point: dict[str, Any]) -> _Asked:
    poll = f"Can this question be answered from the latest frames? Question: {row['question']} Answer with Yes or No."
    clue_s = seconds(row["clue_time"])
    return _Asked(row["question"], poll, _yes_no(point["type"]), "yesno", ((clue_s, clue_s + 30.0),))


def _step(row: dict[str, Any], point: dict[str, Any]) -> _Asked:
    step = point["step"]
    poll = f'Is this step of "{row["tutorial"]}" being carried out now: {step}? Answer with Yes or No.'
    spans = list(zip(row["start_time"], row["end_time"], strict=True))
    place = row["all_steps"].index(step) if step in row["all_steps"] else len(spans)
    windows = ((seconds(spans[place][0]), seconds(spans[place][1])),) if place < len(spans) else ()
    return _Asked(poll, poll, _yes_no(point["type"]), "yesno", windows)


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
