"""One pass through the language model for the tokens of many streams at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    """Does somebody want to know what comes after the last token? Its result is then scores `[vocabulary]`."""
    scored: int = 0
    """After how many of its last tokens somebody wants to know what comes: then scores `[scored, vocabulary]`."""
    wants_hidden: bool = False
    """Does somebody want the last token's last hidden state? Then the result is `[hidden_dim]`."""
    heard: tuple[int, ...] = ()
    """Of which tokens somebody wants the last hidden state, ascending: then the result is `[heard, hidden_dim]`."""
    priority: int = 0
    """0 for what a stream or a questioner waits for; 1 for what may come later (see `Scheduler`). In packed passes the
    first come first."""

    @property
    def num_told(self) -> int:
        """Of how many of its last tokens the last hidden states are needed."""
        newest = len(self.embeddings) - self.heard[0] if self.heard else 0
        return max(self.scored, int(self.wants_logits or self.wants_hidden), newest)

    def ending_at(self, places: Sequence[int]) -> "Work":
        """As it is, of which several blocks end at these tokens: whoever wants to hear of its end hears of theirs."""
        return replace(self, wants_hidden=False, heard=tuple(places)) if self.wants_hidden else self


def results(model: VideoModel, works: Sequence[Work], hidden: Sequence[Tensor]) -> list[Tensor | None]:
    """What each work gets, from the last hidden states of the tokens that are asked about, `[num_told, hidden_dim]`
    each. All scores come of one product."""
    told: list[Tensor | None] = [
        rows[-1] if work.wants_hidden else rows[[at - work.heard[0] for at in work.heard]] if work.heard else None
        for work, rows in zip(works, hidden, strict=True)
    ]
    asked = [n for n, work in enumerate(works) if work.num_told and not work.wants_hidden and not work.heard]
    if asked:
        scores = model.logits(torch.cat([hidden[number] for number in asked]))
        for number, part in zip(asked, scores.split([works[number].num_told for number in asked]), strict=True):
            told[number] = part if works[number].scored else part[0]
    return told


def run_pass(model: VideoModel, works: Sequence[Work]) -> list[Tensor | None]:
    """Read all works in one packed pass; for each, what is wanted of it (see `Work`), or None.

    Works of different streams and kinds (frames, questions, single decoded tokens) may be mixed: every segment attends
    to its own stream only, so the result of one does not depend on the others beyond rounding.
    """
    counts = [len(work.embeddings) for work in works]
    segments = [(work.segment, count) for work, count in zip(works, counts, strict=True)]
    attention = PackedAttention(segments, model.rotary)
    embeddings = torch.cat([work.embeddings for work in works])
    hidden = model.extend_lean(embeddings, attention, _packed_extras(works, counts))
    parts = [rows[len(rows) - work.num_told :] for work, rows in zip(works, hidden.split(counts), strict=True)]
    return results(model, works, parts)


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
