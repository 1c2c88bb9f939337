"""MLVU (Zhou et al., 2024): seven multiple-choice tasks on long videos, and two open ones.

Reads one file (`1_plotQA.json` ...) or the folder of them; videos lie in a folder of the same name, or flat.

Published scorer: the character before the first ")" of the reply, else the whole reply, is the letter, case and all.
M-Avg = mean over tasks, not over questions. The open tasks (`sub_scene`, `summary`) need a judge: the stand-in is
the word overlap (F1) with the reference, reported under their own names and left out of M-Avg.
"""

from collections.abc import Sequence
from pathlib import Path

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import matching
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _choices
from onlooker.evals.readers._rows import QuestionRows, by_text, load

OPEN = ("sub_scene", "subPlot", "summary")


def read(annotations: Path, videos: Path) -> Reading:
    """A file, or a folder of files."""
    rows = QuestionRows(videos, "mlvu")
    for path in sorted(annotations.glob("*.json")) if annotations.is_dir() else [annotations]:
        for number, row in enumerate(load(path)):
            with rows.row(f"{path.name} row {number}"):
                video = rows.video(row["video"], f"{path.stem}/{row['video']}")
                name, task, words = f"mlvu-{path.stem}-{number}", str(row["question_type"]), row["question"]
                if "candidates" in row:
                    options = by_text(row["candidates"], row["answer"])
                    query = _choices.at_the_end(rows, "mlvu", name, video, task, words, options)
                    rows.add(query)
                else:
                    ask_s = rows.duration(video) or float(row["duration"])
                    points = row.get("scoring_points", [])
                    rows.add(
                        QueryRecord(
                            id=name, video=video, benchmark="mlvu", task=task, family="offline", ask_time=ask_s,
                            question=words, answer=str(row["answer"]), answer_type="text",
                            meta={"scoring_points": points},
                        )
                    )  # fmt: skip
    return rows.reading()


def official(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """The published marks; none for the open tasks."""
    return _choices.marker(_choices.before_bracket)(query, replies) if query.options else []


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """Ours."""
    if query.options:
        return _choices.strict(query, replies)
    return [Mark(matching.token_f1(replies[0].text, query.answer), "word overlap", counts=False)]


def summary(tasks: ByTask) -> dict[str, float]:
    """M-Avg."""
    return {"M-Avg": mean([mean(values) for task, values in tasks.items() if values and task not in OPEN])}


BENCHMARK = Benchmark(read, strict, official, summary, "character before ')' == letter; M-Avg = mean over tasks")
