"""VStream-QA and RVS (Zhang et al., 2024): timed open questions on ego and movie clips.

Reads the RVS form (`conversations` with `end_time`, one video for all of them) and the flat VStream form (`video_id,
question, id, answer, answer_type, duration`).

Published scorer: gpt-3.5-turbo says yes or no and gives 0 to 5; versions of the judge differ between papers. There is
none without a judge. Strict stand-in: word overlap (F1) with the reference.
"""

from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord
from onlooker.evals.benchmark import Benchmark, ByTask, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _open
from onlooker.evals.readers._rows import Rows, load, seconds


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file."""
    rows = Rows(videos, "vstream_qa")
    for number, entry in enumerate(load(annotations)):
        name = str(entry.get("video_path") or entry.get("video_id"))
        for place, row in enumerate(entry.get("conversations", [entry])):
            with rows.row(f"{annotations.name} entry {number} question {place}"):
                video = rows.video(name, Path(name).name, str(entry.get("video_id")))
                rows.add(_query(rows, f"rvs-{number}-{place}", video, entry, row))
    return rows.reading()


def _query(rows: Rows, name: str, video: str, entry: dict[str, Any], row: dict[str, Any]) -> QueryRecord:
    end = row.get("end_time", row.get("duration", entry.get("duration")))
    ask_s = seconds(end) if end is not None else rows.duration(video)
    if ask_s is None:
        raise KeyError("end_time")
    start = row.get("start_time")
    task = str(row.get("answer_type") or row.get("question_type", "qa"))
    evidence = ((seconds(start), ask_s),) if start is not None else ()
    return QueryRecord(
        id=name, video=video, benchmark="vstream_qa",
        task=task,
        family="realtime", ask_time=ask_s, question=row["question"], answer=str(row["answer"]), answer_type="text",
        evidence=evidence,
    )  # fmt: skip


def summary(tasks: ByTask) -> dict[str, float]:
    """The mean over questions; no published number is of this kind."""
    return {"Word overlap": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(read, _open.word_overlap, None, summary, "gpt-3.5 judge, yes/no and 0-5 (not run); word overlap")
