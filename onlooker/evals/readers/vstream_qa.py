"""VStream-QA and RVS (Zhang et al., 2024): timed open questions on ego and movie clips.

Reads the RVS form (`conversations` with `end_time`, one video for all of them) and the flat VStream form (`video_id,
question, id, answer, answer_type, duration`). A row with `options`, `choices` or `candidates` is multiple choice.

Published scorer: gpt-3.5-turbo says yes or no and gives 0 to 5; versions of the judge differ between papers. There is
none without a judge. Strict stand-in: word overlap (F1) with the reference; for choices one unambiguous letter.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _choices, _open
from onlooker.evals.readers._rows import QuestionRows, by_any, lines, load, seconds


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file."""
    rows = QuestionRows(videos, "vstream_qa")
    for number, entry in enumerate(load(annotations)):
        name = str(entry.get("video_path") or entry.get("video_id"))
        for place, row in enumerate(entry.get("conversations", [entry])):
            with rows.row(f"{annotations.name} entry {number} question {place}"):
                video = rows.video(name, Path(name).name, str(entry.get("video_id")))
                rows.add(_query(rows, f"rvs-{number}-{place}", video, entry, row))
    return rows.reading()


def _query(rows: QuestionRows, name: str, video: str, entry: dict[str, Any], row: dict[str, Any]) -> QueryRecord:
    end = row.get("end_time", row.get("duration", entry.get("duration")))
    ask_s = seconds(end) if end is not None else rows.duration(video)
    if ask_s is None:
        raise KeyError("end_time")
    start = row.get("start_time")
    evidence = ((seconds(start), ask_s),) if start is not None else ()
    listed = next((row[name] for name in ("options", "choices", "candidates") if row.get(name)), None)
    options = by_any(listed, row["answer"]) if listed else None
    words, meta = str(row["question"]), {}
    if options:
        prompt = f"Question: {words}\nOptions:\n{lines(options.texts, '({}) ')}\nBest option: ("
        meta = {"prompt": prompt} | options.meta
    task = str(row.get("answer_type") or row.get("question_type", "qa"))
    return QueryRecord(
        id=name, video=video, benchmark="vstream_qa", task=task, family="realtime", ask_time=ask_s,
        question=words, answer=options.answer if options else str(row["answer"]),
        answer_type="mcq" if options else "text", options=options.texts if options else (), evidence=evidence,
        meta=meta,
    )  # fmt: skip


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """Ours."""
    return _choices.strict(query, replies) if query.options else _open.word_overlap(query, replies)


def summary(tasks: ByTask) -> dict[str, float]:
    """The mean over questions; no published number is of this kind."""
    return {"Mean": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(read, strict, None, summary, "gpt-3.5 judge, yes/no and 0-5 (not run); word overlap")
