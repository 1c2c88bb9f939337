"""SVBench (Yang et al., ICLR 2025): chains of timed open questions, linked along the video.

Reads the folder that holds `gt/<video>.json` (lists of chains: `questions, answers, qac_timestamps_start,
qac_timestamps_end`) and, where it is, `con/<video>.json` (links between neighbouring chains).

Published scorer: a GPT-4 judge gives 0 to 10 for six dimensions, times ten; a missing score becomes null. There is none
without a judge. Strict stand-in: word overlap (F1) with the reference. History is the model's own dialogue in the
chain.
"""

from pathlib import Path
from typing import Any

from onlooker.core.records import QueryRecord
from onlooker.evals.benchmark import Benchmark, ByTask, mean
from onlooker.evals.item import Reading
from onlooker.evals.readers import _open
from onlooker.evals.readers._rows import Bad, Rows, load, seconds


def read(annotations: Path, videos: Path) -> Reading:
    """Every file of `gt` (or of the folder itself)."""
    rows = Rows(videos, "svbench")
    folder = annotations / "gt" if (annotations / "gt").is_dir() else annotations
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else [folder]:
        links = _links(path.parent.parent / "con" / path.name)
        for number, chain in enumerate(load(path)):
            where, ids = f"{path.name} chain {number}", f"{path.stem}-{number}"
            with rows.row(where, max(1, len(chain.get("questions", ())))):
                counts = {len(chain[name]) for name in ("questions", "answers")}
                if len(counts) != 1:
                    raise Bad("as many answers as questions are needed")
                _chain(rows, where, ids, path.stem, chain, links.get(number, {}))
    return rows.reading()


def _chain(rows: Rows, where: str, ids: str, stem: str, chain: dict[str, Any], links: dict[int, list[str]]) -> None:
    video = rows.video(stem)
    times = _times(chain)
    for order, (words, answer) in enumerate(zip(chain["questions"], chain["answers"], strict=True)):
        with rows.row(f"{where} question {order}"):
            start_s, end_s = times[order]
            rows.add(
                QueryRecord(
                    id=f"{ids}-{order}", video=video, benchmark="svbench", task="dialogue", family="context",
                    ask_time=end_s, question=words, answer=answer, answer_type="text", evidence=((start_s, end_s),),
                    group=ids, order=order, links=tuple(links.get(order, ())), history="own",
                )
            )  # fmt: skip


def _times(chain: dict[str, Any]) -> list[tuple[float, float]]:
    starts, ends = chain["qac_timestamps_start"], chain["qac_timestamps_end"]
    if isinstance(starts, list):
        return [(seconds(a), seconds(b)) for a, b in zip(starts, ends, strict=True)]
    # One span for the chain: the questions come at its end, in order.
    return [(seconds(starts), seconds(ends))] * len(chain["questions"])


def _links(path: Path) -> dict[int, dict[int, list[str]]]:
    """Chain number to (question of it to ids of questions of the chain before that it hangs on)."""
    found: dict[int, dict[int, list[str]]] = {}
    for number, link in enumerate(load(path) if path.is_file() else []):
        relation = link.get("relationship", {})
        earlier = [f"{path.stem}-{number}-{place}" for place in relation.get("chainBefore", ())]
        found[number + 1] = {int(place): earlier for place in relation.get("chainAfter", ())}
    return found


def summary(tasks: ByTask) -> dict[str, float]:
    """The mean over questions; no published number is of this kind."""
    return {"Word overlap": mean([value for values in tasks.values() for value in values])}


BENCHMARK = Benchmark(
    read, _open.word_overlap, None, summary, "GPT-4 judge, six dimensions (not run); word overlap", ("svbench",)
)
