"""LongVideoBench (Wu et al., 2024): up to five options, subtitles on the side.

Reads `lvb_val.json` (`candidates`, `correct_choice`) and the hub's columns (`option0` ... `option4`, "N/A" where
there is none). Subtitles beside the annotations become side text with times shifted by
`starting_timestamp_for_subtitles`.

Published scorer (lmms-eval's): the first capital A to E anywhere, and a random letter where there is none, which
gives a silent model one fifth of the points. We draw that letter from the question's id, so that a rerun says the
same. Strict: one unambiguous letter; silence is wrong. Score = share of right answers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import matching
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, mean
from onlooker.evals.controls import lot
from onlooker.evals.item import Reading
from onlooker.evals.readers import _choices
from onlooker.evals.readers._rows import QuestionRows, by_number, load, seconds


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file; the group of lengths is the task."""
    rows = QuestionRows(videos, "longvideobench")
    for number, row in enumerate(load(annotations)):
        with rows.row(f"{annotations.name} row {number}"):
            options = by_number(row["candidates"] if "candidates" in row else _columns(row), row["correct_choice"])
            video = rows.video(row["video_path"], f"videos/{row['video_path']}", side=_subtitles(annotations, row))
            meta = {"category": row.get("question_category", "")}
            query = _choices.at_the_end(
                rows, "longvideobench", f"lvb-{row['id']}", video, str(row.get("duration_group", "")),
                row["question"], options, meta=meta,
            )  # fmt: skip
            rows.add(query)
    return rows.reading()


def _columns(row: dict[str, Any]) -> list[str]:
    return [row[f"option{place}"] for place in range(5) if row.get(f"option{place}") not in (None, "", "N/A")]


def _subtitles(annotations: Path, row: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    path = annotations.parent / "subtitles" / str(row.get("subtitle_path", ""))
    if not path.is_file():
        return ()
    shift_s, side = float(row.get("starting_timestamp_for_subtitles") or 0.0), []
    for line in load(path):
        start, end = line["timestamp"] if "timestamp" in line else (line["start"], line["end"])
        if isinstance(end, int | float) or end:
            t0, t1 = seconds(start) - shift_s, seconds(end) - shift_s
            text = line.get("text", line.get("line", ""))
            side.append({"kind": "asr", "t0": t0, "t1": max(t1, t0 + 1.0), "text": text})
    return tuple(side)


def official(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """The published marks, guesses and all."""
    letter = _choices.first_capital("E")(replies[0].text) or chr(65 + lot(query) % 5)
    return [Mark(float(letter == matching.option_letter(query)))]


def summary(tasks: ByTask) -> dict[str, float]:
    """Overall, by questions."""
    return {"Overall": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(read, _choices.strict, official, summary, "first capital A-E or a guess; share of right")
