"""StreamingBench (Lin et al., 2024): real-time, omni, contextual and proactive questions at a time stamp.

Reads `questions_{real,omni,sqa,proactive}.json` (or the CSV with options as the text of a Python list).

Published scorer (`src/data/count.py`): multiple choice is right when the first character of the raw reply is the
letter, so " B" and "The answer is B" are wrong; proactive is time-right when |t - gold| <= 2 s, where t is the last
poll (1 Hz from the request, the first reply with "yes" anywhere in it ends the polls, gold + 4 s is the last), and
answer-right when the phrase is in the last message. Averages: by questions, not by tasks. Strict: one unambiguous
letter; "yes" as a word; a proactive reply must be right in time and in words.
"""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord, ReplyRecord
from onlooker.evals import matching
from onlooker.evals.asking import says_yes
from onlooker.evals.benchmark import Benchmark, ByTask, Mark, weighted
from onlooker.evals.item import Reading
from onlooker.evals.readers._rows import Bad, QuestionRows, by_letter, lines, load, seconds

TOLERANCE_S, LAST_POLL_S = 2.0, 4.0
REAL_TIME = (
    "Object Recognition", "Causal Reasoning", "Clips Summarize", "Attribute Recognition", "Event Understanding",
    "Text-Rich Understanding", "Prospective Reasoning", "Spatial Understanding", "Action Recognition", "Counting",
)  # fmt: skip
OMNI = ("Emotion Recognition", "Scene Understanding", "Source Discrimination", "Multimodal Alignment")
CONTEXTUAL = ("Anomaly Context Understanding", "Misleading Context Understanding", "Sequential Question Answering")
PROACTIVE = "Proactive Output"


def read(annotations: Path, videos: Path, context_s: float | None = None) -> Reading:
    """One annotation file. `context_s` limits what a question may use (60 is the paper's second table)."""
    rows = QuestionRows(videos, "streamingbench")
    for where, path, entry, chain in _entries(load(annotations)):
        for place, row in enumerate(_questions(entry)):
            with rows.row(f"{annotations.name} {where} question {place}"):
                query = _query(rows, f"{where}-{place}", path, row, chain, context_s)
                rows.add(query)
                if chain is not None:
                    chain.append(_told(row, query))
    return rows.reading()


def _entries(data: Any) -> Iterator[tuple[str, Any, Any, list[str] | None]]:
    """(place in the file, video, entry, text of the chain so far or None). A list in the list is a chain."""
    for number, entry in enumerate(data):
        if isinstance(entry, list):
            chain: list[str] = []
            for step, part in enumerate(entry):
                yield f"chain {number} entry {step}", part.get("video_path"), part, chain
        else:
            video = entry.get("video_path") or "_".join(str(entry.get("question_id", "")).split("_")[:2])
            yield f"entry {number}", video, entry, None


def _questions(entry: dict[str, Any]) -> Sequence[Any]:
    if "question" in entry:  # a row of the CSV
        return [entry | {"options": _listed(entry.get("options"))}]
    return entry.get("questions") or [{}]


def _listed(text: Any) -> Any:
    try:
        return ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError):
        return text


def _query(
    rows: QuestionRows,
    name: str,
    path: str | None,
    row: dict[str, Any],
    chain: list[str] | None,
    context_s: float | None,
) -> QueryRecord:
    ask_s = seconds(row["time_stamp"])
    if not path:
        raise Bad("no video_path")
    video = rows.video(path, f"{path}/video.mp4", Path(path).name)
    if "ground_truth_time_stamp" in row:
        return _proactive(name, video, row, ask_s)
    options = by_letter(row["options"], row["answer"])
    before = "" if not chain else "Earlier questions and their answers:\n" + "\n".join(chain) + "\n"
    prompt = (
        f"{before}Question: {row['question']}\nOptions:\n{lines(options.texts)}\n"
        "Answer with the letter of the best option only.\nThe best option is:"
    )
    return QueryRecord(
        id=name.replace(" ", "-"), video=video, benchmark="streamingbench", task=str(row["task_type"]),
        family="context" if chain is not None else "realtime", ask_time=ask_s, question=row["question"],
        answer=options.answer, options=options.texts, context=(0.0 if context_s is None else -context_s, None),
        order=len(chain or ()),
        group=name.split(" entry")[0] if chain is not None else "", history="none" if chain is None else "gold",
        meta=options.meta | {"prompt": prompt, "ability": row.get("required_ability", "")},
    )  # fmt: skip


def _proactive(name: str, video: str, row: dict[str, Any], ask_s: float) -> QueryRecord:
    gold_s, phrase = seconds(row["ground_truth_time_stamp"]), str(row["ground_truth_output"])
    if gold_s < ask_s:
        raise Bad(f"the moment to speak ({gold_s:.0f} s) lies before the request ({ask_s:.0f} s)")
    poll = f'{row["question"]} Is it the right time to output "{phrase}"? Answer with yes or no only.'
    return QueryRecord(
        id=name.replace(" ", "-"), video=video, benchmark="streamingbench", task=str(row.get("task_type", PROACTIVE)),
        family="forward", ask_time=ask_s, question=row["question"], answer=phrase, answer_type="proactive",
        context=(ask_s, None), windows=((gold_s - TOLERANCE_S, gold_s + TOLERANCE_S),), tolerance=TOLERANCE_S,
        meta={
            "phrase": phrase, "poll": poll, "poll_every_s": 1.0, "poll_until_s": gold_s + LAST_POLL_S,
            "flags": ["until_yes"],
        },
    )  # fmt: skip


def _told(row: dict[str, Any], query: QueryRecord) -> str:
    """A question of a chain as the next ones are told of it: with its gold answer."""
    letter = matching.option_letter(query)
    return f"At {row['time_stamp']}: {query.question}\n{lines(query.options)}\nAnswer: {letter}"


def official(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """The published marks, bugs and all."""
    if query.answer_type != "proactive":
        text = replies[0].text
        return [Mark(float(text[:1] == matching.option_letter(query)))]
    gold_s = query.windows[0][0] + TOLERANCE_S
    in_time = abs(replies[-1].t - gold_s) <= TOLERANCE_S
    return [Mark(float(in_time), "time"), Mark(float(query.answer in replies[-1].text), "words", counts=False)]


def strict(query: QueryRecord, replies: Sequence[ReplyRecord]) -> list[Mark]:
    """Ours."""
    if query.answer_type != "proactive":
        return [Mark(float(matching.chose_right(query, replies[0].text)))]
    gold_s = query.windows[0][0] + TOLERANCE_S
    # By the strict rule too, only the first moment of speech counts.
    spoken = next((poll.t for poll in replies if poll.kind == "poll" and says_yes(poll.text)), None)
    in_time = spoken is not None and abs(spoken - gold_s) <= TOLERANCE_S
    message = " ".join(reply.text for reply in replies if reply.kind == "unprompted")
    said = matching.normal(query.answer) in matching.normal(message)
    return [Mark(float(in_time and said)), Mark(float(in_time), "time", counts=False)]


def summary(tasks: ByTask) -> dict[str, float]:
    """Question-weighted means of the four parts and of everything."""
    parts = {"Real-time": REAL_TIME, "Omni": OMNI, "Contextual": (*CONTEXTUAL, PROACTIVE)}
    # Files spell some names in two ways ("Text-Rich", "Text-Rich Understanding"): the first word decides.
    groups = {
        part: [task for task in tasks if task.split()[:1] in [name.split()[:1] for name in names]]
        for part, names in parts.items()
    }
    return weighted(tasks, groups | {"All": list(tasks)})


BENCHMARK = Benchmark(
    read, strict, official, summary,
    "multiple choice: reply[0] == letter; proactive: |t_last - gold| <= 2 s; mean over questions",
    ("streamingbench",),
)  # fmt: skip
