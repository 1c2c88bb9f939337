"""One pass through the language model for the tokens of many streams at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onlooker.core.contracts import VideoModel
from onlooker.kvstore import PackedAttention, Segment


@dataclass(frozen=True)
class Work:
    """Tokens of one stream that are to be read in the next pass."""

    embeddings: Tensor
    """`[tokens, hidden_dim]`."""
    segment: Segment
    """Where their keys and values go and what they may attend to."""
    extras: Mapping[str, Tensor] | None = None
    """Rows that enter language layers beside some of the tokens, each `[tokens, ...]` (DeepStack)."""
    wants_logits: bool = False
    """Does somebody want to know what comes after the last token?"""


def run_pass(model: VideoModel, works: Sequence[Work]) -> list[Tensor | None]:
    """Read all works in one packed pass; for each, the scores after its last token `[vocabulary]` or None.

    Works of different streams and kinds (frames, questions, single decoded tokens) may be mixed: every segment attends
    to its own stream only, so the result of one does not depend on the others beyond rounding.
    """
    counts = [len(work.embeddings) for work in works]
    segments = [(work.segment, count) for work, count in zip(works, counts, strict=True)]
    attention = PackedAttention(segments, model.rotary)
    embeddings = torch.cat([work.embeddings for work in works])
    hidden = model.extend_lean(embeddings, attention, _packed_extras(works, counts))
    ends = torch.tensor(counts).cumsum(0).tolist()
    asked = [number for number, work in enumerate(works) if work.wants_logits]
    results: list[Tensor | None] = [None] * len(works)
    if asked:
        rows = torch.tensor([ends[number] - 1 for number in asked], device=hidden.device)
        for number, scores in zip(asked, model.logits(hidden[rows]), strict=True):
            results[number] = scores
    return results


def _packed_extras(works: Sequence[Work], counts: Sequence[int]) -> dict[str, Tensor] | None:
    given = {name: value for work in works if work.extras for name, value in work.extras.items()}
    if not given:
        return None
    packed = {}
    for name, like in given.items():
        parts = [
            work.extras[name] if work.extras and name in work.extras else like.new_zeros(count, *like.shape[1:])
            for work, count in zip(works, counts, strict=True)
        ]
        packed[name] = torch.cat(parts)
    return packed
