"""The unified JSON form of ReKV and STC: conversations about a video, with choices or open, with evidence windows.

Reads lists of `{video_id, video_path, duration, conversations: [{question, choices?, answer, question_type?,
temporal_windows?, start_time?, end_time?}]}`: ActivityNet-QA, EgoSchema, MLVU, QAEgo4D, Video-MME, RVS in one form.

Published scorer: with choices, the text before the first ")" is the letter (the prompt ends in "("); open answers
need a judge. Strict: one unambiguous letter; word overlap (F1) for open ones. Retrieval recall = share of evidence
windows that a cited span touches, in every reply's `evidence_recalled`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _choices, _open
from onlooker.evals.readers._rows import Bad, Rows, by_letter, by_text, lines, load, plain_options, seconds


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file."""
    rows = Rows(videos, "rekv_json")
    for number, entry in enumerate(load(annotations)):
        for place, row in enumerate(entry.get("conversations") or [{}]):
            with rows.row(f"{annotations.name} entry {number} question {place}"):
                path = str(entry.get("video_path") or entry["video_id"])
                video = rows.video(path, Path(path).name, str(entry.get("video_id", "")))
                rows.add(_query(rows, f"rekv-{number}-{place}", video, entry, row))
    return rows.reading()


def _query(rows: Rows, name: str, video: str, entry: dict[str, Any], row: dict[str, Any]) -> QueryRecord:
    length = rows.duration(video)
    end = row.get("end_time")
    ask_s = seconds(end) if end is not None else length if length is not None else seconds(entry["duration"])
    windows = []
    for start, stop in row.get("temporal_windows") or ():
        if stop < start:
            raise Bad(f"a window ends before it begins: {start} to {stop}")
        windows.append((float(start), float(stop)))
    words, answer, options, prompt = str(row["question"]), str(row["answer"]), (), ""
    if row.get("choices"):
        options = plain_options(row["choices"])
        answer = by_text(options, answer) if answer.strip() in options else by_letter(options, answer)
        prompt = f"Question: {words}\nOptions:\n{lines(options, '({}) ')}\nBest option: ("
    return QueryRecord(
        id=name, video=video, benchmark="rekv_json", task=str(row.get("question_type", "qa")),
        family="offline" if end is None else "realtime", ask_time=ask_s, question=words, answer=answer,
        answer_type="mcq" if options else "text", options=options, evidence=tuple(windows),
        meta={"prompt": prompt, "lettered": True} if options else {},
    )  # fmt: skip


def official(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """The published marks; none for open answers."""
    return _choices.marker(lambda text: text.split(")")[0].strip())(query, replies) if query.options else []


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """Ours."""
    return _choices.strict(query, replies) if query.options else _open.word_overlap(query, replies)


def summary(tasks: ByTask) -> dict[str, float]:
    """By kind of question, and over all questions."""
    kinds = {task: mean(values) for task, values in tasks.items() if values}
    return kinds | {"All": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(read, strict, official, summary, "text before ')' == letter; share of right answers")
