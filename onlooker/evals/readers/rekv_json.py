"""The unified JSON form of ReKV and STC: conversations about a video, with choices or open, with evidence windows.

Reads lists of `{video_id, video_path, duration, conversations: [{question, choices?, answer, question_type?,
temporal_windows?, start_time?, end_time?}]}`: ActivityNet-QA, EgoSchema, MLVU, QAEgo4D, Video-MME, RVS in one form.

Published scorer: with choices, the character before the first ")" is the letter, without one the first character of the
reply (the prompt ends in "("); open answers need a judge. An answer may be the words of a choice, its letter or its
number (the EgoSchema subset of STC). Strict: one unambiguous letter; word overlap (F1) for open ones. Retrieval recall
= share of evidence windows that a cited span touches, in every reply's `evidence_recalled`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _choices, _open
from onlooker.evals.readers._rows import Bad, Options, QuestionRows, by_any, lines, load, seconds


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file."""
    rows = QuestionRows(videos, "rekv_json")
    for number, entry in enumerate(load(annotations)):
        for place, row in enumerate(entry.get("conversations") or [{}]):
            with rows.row(f"{annotations.name} entry {number} question {place}"):
                path = str(entry.get("video_path") or entry["video_id"])
                video = rows.video(path, Path(path).name, str(entry.get("video_id", "")))
                options = by_any(row["choices"], row["answer"]) if row.get("choices") else None
                query = _query(rows, f"rekv-{number}-{place}", video, entry, row, options)
                rows.add(query)
    return rows.reading()


def _query(
    rows: QuestionRows, name: str, video: str, entry: dict[str, Any], row: dict[str, Any], options: Options | None
) -> QueryRecord:
    length = rows.duration(video)
    end = row.get("end_time")
    ask_s = seconds(end) if end is not None else length if length is not None else seconds(entry["duration"])
    windows = []
    for start, stop in row.get("temporal_windows") or ():
        if stop < start:
            raise Bad(f"a window ends before it begins: {start} to {stop}")
        windows.append((float(start), float(stop)))
    words, meta = str(row["question"]), {}
    if options:
        prompt = f"Question: {words}\nOptions:\n{lines(options.texts, '({}) ')}\nBest option: ("
        meta = {"prompt": prompt} | options.meta
    return QueryRecord(
        id=name, video=video, benchmark="rekv_json", task=str(row.get("question_type", "qa")),
        family="offline" if end is None else "realtime", ask_time=ask_s, question=words,
        answer=options.answer if options else str(row["answer"]), answer_type="mcq" if options else "text",
        options=options.texts if options else (), evidence=tuple(windows), meta=meta,
    )  # fmt: skip


def official(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """The published marks; none for open answers."""
    return _choices.marker(_choices.before_bracket_or_first)(query, replies) if query.options else []


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """Ours."""
    return _choices.strict(query, replies) if query.options else _open.word_overlap(query, replies)


def summary(tasks: ByTask) -> dict[str, float]:
    """By kind of question, and over all questions."""
    kinds = {task: mean(values) for task, values in tasks.items() if values}
    return kinds | {"All": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(read, strict, official, summary, "character before ')' or first == letter; share of right")
