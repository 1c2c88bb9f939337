"""SVBench (Yang et al., ICLR 2025): chains of timed open questions, linked along the video.

Reads the folder that holds `gt/<video>.json` (lists of chains: `questions, answers, qac_timestamps_start,
qac_timestamps_end`) and, where it is, `con/<video>.json` (links between neighbouring chains).

Published scorer: a GPT-4 judge gives 0 to 10 for six dimensions, times ten; a missing score becomes null. There is none
without a judge. Strict stand-in: word overlap (F1) with the reference. History is the model's own dialogue: in the
dialogue evaluation that of the chain, in the streaming evaluation that of all questions that links string together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord
from onlooker.evals.benchmark import Benchmark, ByTask, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _open
from onlooker.evals.readers._rows import Bad, QuestionRows, load, seconds


def read(annotations: Path, videos: Path) -> Reading:
    """Every file of `gt` (or of the folder itself)."""
    rows = QuestionRows(videos, "svbench")
    folder = annotations / "gt" if (annotations / "gt").is_dir() else annotations
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else [folder]:
        chains, beside = load(path), path.parent.parent / "con" / path.name
        links = _links(rows, chains, beside) if beside.is_file() else []
        for number, chain in enumerate(chains):
            with rows.row(f"{path.name} chain {number}", max(1, len(chain.get("questions", ())))):
                _check(chain)
                hangs_on = {
                    after: link.before_ids(path.stem) for link in links if link.to == number for after in link.after
                }
                for order, (words, answer, span) in enumerate(_turns(chain)):
                    with rows.row(f"{path.name} chain {number} question {order}"):
                        name, group = f"{path.stem}-{number}-{order}", f"{path.stem}-{number}"
                        rows.add(_query(rows, path.stem, name, "dialogue", words, answer, span, group, order, hangs_on))
        with rows.row(f"{path.name} links", 0):
            _streaming(rows, path.stem, chains, links)
    return rows.reading()


@dataclass(frozen=True)
class _Link:
    """Questions of one chain that build on questions of an earlier one."""

    of: int
    to: int
    before: tuple[int, ...]
    after: tuple[int, ...]

    def before_ids(self, stem: str) -> tuple[str, ...]:
        return tuple(f"{stem}-{self.of}-{place}" for place in self.before)


def _check(chain: dict[str, Any]) -> None:
    if len({len(chain[name]) for name in ("questions", "answers")}) != 1:
        raise Bad("as many answers as questions are needed")


def _turns(chain: dict[str, Any]) -> list[tuple[str, str, tuple[float, float]]]:
    return list(zip(chain["questions"], chain["answers"], _times(chain), strict=True))


def _query(
    rows: QuestionRows, stem: str, name: str, task: str, words: str, answer: str, span: tuple[float, float], group: str,
    order: int, hangs_on: Mapping[int, tuple[str, ...]],
) -> QueryRecord:  # fmt: skip
    return QueryRecord(
        id=name, video=rows.video(stem), benchmark="svbench", task=task, family="context", ask_time=span[1],
        question=words, answer=answer, answer_type="text", evidence=(span,), group=group, order=order,
        links=hangs_on.get(order, ()), history="own",
    )  # fmt: skip


def _streaming(rows: QuestionRows, stem: str, chains: Sequence[dict[str, Any]], links: Sequence[_Link]) -> None:
    """The linked questions of all chains as one conversation along the video, each once."""
    linked = {(link.of, place) for link in links for place in link.before}
    linked |= {(link.to, place) for link in links for place in link.after}
    turns = sorted(
        (_turns(chains[number])[place][2][1], number, place)
        for number, place in linked
        if place < len(chains[number]["questions"])
    )
    for order, (_, number, place) in enumerate(turns):
        words, answer, span = _turns(chains[number])[place]
        name = f"{stem}-linked-{number}-{place}"
        rows.add(_query(rows, stem, name, "streaming", words, answer, span, f"{stem}-linked", order, {}))


def _times(chain: dict[str, Any]) -> list[tuple[float, float]]:
    starts, ends = chain["qac_timestamps_start"], chain["qac_timestamps_end"]
    if isinstance(starts, list):
        return [(seconds(a), seconds(b)) for a, b in zip(starts, ends, strict=True)]
    # One span for the chain: the questions come at its end, in order.
    return [(seconds(starts), seconds(ends))] * len(chain["questions"])


def _links(rows: QuestionRows, chains: Sequence[dict[str, Any]], path: Path) -> list[_Link]:
    """The links of a video. A link names its chains by when they start, not by their number."""
    starts = {_start(chain): number for number, chain in reversed(list(enumerate(chains))) if _start(chain) is not None}
    found = []
    for place, link in enumerate(load(path)):
        with rows.row(f"con/{path.name} link {place}", 0):
            relation = link["relationship"]
            of, to = (starts.get(_start(link[name])) for name in ("chain_1", "chain_2"))
            if of is None or to is None:
                raise Bad("the link is between chains that are not there")
            before, after = (tuple(map(int, relation[name])) for name in ("chainBefore", "chainAfter"))
            found.append(_Link(of, to, before, after))
    return found


def _start(chain: dict[str, Any]) -> float | None:
    start = chain.get("qac_timestamps_start")
    try:
        return seconds(start[0] if isinstance(start, list) else start)
    except (Bad, IndexError):
        return None


def summary(tasks: ByTask) -> dict[str, float]:
    """The means over questions of both evaluations; no published number is of this kind."""
    means = {f"Word overlap, {task}": mean(values) for task, values in tasks.items() if values}
    return means | {"Word overlap": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(
    read, _open.word_overlap, None, summary, "GPT-4 judge, six dimensions (not run); word overlap", ("svbench",)
)
