"""Video-MME (Fu et al., 2024): four options on short, medium and long videos.

Reads the nested form (a video with its three `questions`) and the flat one (a row for each question).

Published scorer (`eval_your_results.py`): known prefixes are cut off, then the first capital A to D anywhere is the
letter, inside a word too ("Both" is a B). Score = share of right answers, also by length.
Strict: one unambiguous letter.
"""

from pathlib import Path

from onlooker.evals.benchmark import Benchmark, ByTask, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _choices
from onlooker.evals.readers._rows import QuestionRows, by_letter, load


def read(annotations: Path, videos: Path) -> Reading:
    """The whole file; the length of the video is the task."""
    rows = QuestionRows(videos, "videomme")
    for number, entry in enumerate(load(annotations)):
        for place, row in enumerate(entry.get("questions", [entry])):
            with rows.row(f"{annotations.name} entry {number} question {place}"):
                video = rows.video(str(entry.get("videoID") or entry["video_id"]), str(entry["video_id"]))
                options = by_letter(row["options"], row["answer"])
                query = _choices.at_the_end(
                    rows, "videomme", f"mme-{row['question_id']}", video, str(entry["duration"]), row["question"],
                    options, meta={"task_type": row.get("task_type", "")},
                )  # fmt: skip
                rows.add(query)
    return rows.reading()


def summary(tasks: ByTask) -> dict[str, float]:
    """By length, and overall (by questions)."""
    lengths = {task: mean(values) for task, values in tasks.items() if values}
    return lengths | {"Overall": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(
    read, _choices.strict, _choices.marker(_choices.first_capital("D")), summary, "first capital A-D; share of right"
)
