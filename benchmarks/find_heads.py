"""Which heads of a model find things again: a needle test on validation streams, for `retrieval_heads:heads=...`.

    python -m benchmarks.find_heads --model pocket-naive --streams 3 --minutes 20

In every stream things appear once. It is watched to its end, everything parked, and asked about each of them; of every
head it is noted where the frames that show the thing stand among all frames when they are ranked by how much of its
attention the last token of the prompt gives their mean keys (averaged with their neighbours, as the memory does). A
head that finds things has them among the first five again and again; most heads never do. Wu et al. (arXiv 2404.15574)
find such heads by words that are copied. Use the head at the top, or a few of them.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.long_streams import Stream
from onlooker import models
from onlooker.core import provenance
from onlooker.core.contracts import MemoryPolicy
from onlooker.core.records import QueryRecord
from onlooker.core.spans import Recall, Scoring, Span
from onlooker.core.state import StreamState
from onlooker.engine import Engine, Session

WATCHING = "rekv:topk=0,first=1,recent=8,window_tokens=1008"
FIRST, RECENT, TOP = 1, 8, 5


class Listening(MemoryPolicy):
    """Notes what all heads look at; a question sees the ends of the stream only."""

    scores_layers = True

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def new_state(self) -> StreamState:
        """Nothing: what is asked was watched already."""
        return StreamState()

    def scoring(self) -> Scoring:
        """Head by head."""
        return "heads"

    def recall_found(self, layer: int, spans: Sequence[Span], found: Sequence[Tensor], state: StreamState) -> Recall:
        """The prompt, the first block and the newest ones."""
        self.found = list(found)
        return Recall(tuple(span.id for span in (*spans[: 1 + FIRST], *spans[len(spans) - RECENT :])))


def ranks(session: Session, query: QueryRecord, heard: Listening) -> Tensor | None:
    """Of each layer and head the best rank of a frame of the evidence, int64 `[layers, heads]`; None when it lies
    among the frames that are seen anyway."""
    session.ask(query.question, max_new_tokens=1)
    spans = session.store.spans
    past = spans[1 + FIRST : len(spans) - RECENT]
    there = torch.tensor([any(a - 1 <= span.start_s <= b + 1 for a, b in query.evidence) for span in past])
    if not there.any():
        return None
    shares = torch.stack(heard.found)[..., 1 + FIRST : len(spans) - RECENT]
    beside = torch.nn.functional.pad(shares, (1, 1))
    near = beside[..., :-2] + 2 * shares + beside[..., 2:]
    return (near > near[..., there].amax(-1, keepdim=True)).sum(-1)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--streams", type=int, default=3, help="validation streams")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--fps", type=float, default=0.5)
    parser.add_argument("--show", type=int, default=8, help="so many heads")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    model = models.load(given.model, device=given.device, dtype=given.dtype)
    engine = Engine(model, encoder="full", compressor="stc_pruner", memory=WATCHING)
    found: dict[str, list[Tensor]] = defaultdict(list)
    for seed in range(given.first_seed, given.first_seed + given.streams):
        stream = Stream.of_seed(seed, "validation", given.minutes, given.minutes, 960 / given.minutes)
        with engine.open() as session:
            for frame in stream.frames(given.fps):
                session.push(frame)
            session.memory = heard = Listening()
            for query in stream.queries:
                if query.answer != "no" and (best := ranks(session, query, heard)) is not None:
                    found[query.task].append(best)
        print(f"{seed + 1 - given.first_seed} of {given.streams} streams", flush=True)
    tops = {task: (torch.stack(some) < TOP).float().mean(0) for task, some in found.items()}
    mean = torch.stack(list(tops.values())).mean(0)
    order = mean.flatten().argsort(descending=True).tolist()
    heads = mean.shape[1]
    rows = [
        {"head": f"{n // heads}.{n % heads}", "all": round(float(mean.flatten()[n]), 3)}
        | {task: round(float(top.flatten()[n]), 3) for task, top in tops.items()}
        for n in order
    ]
    for row in rows[: given.show]:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    asked = {task: len(some) for task, some in found.items()}
    row = {"bench": "find_heads", "asked": asked, "top": TOP, "heads": rows, "commit": provenance.commit()}
    if given.out:
        with Path(given.out).open("a", encoding="utf-8") as out:
            out.write(json.dumps(row | vars(given)) + "\n")


if __name__ == "__main__":
    main()
