"""Every frame in a few coarse tokens, and those that the question asks for in all of theirs (IVA, without training).

"LLMs Meet Long Video: Advancing Long Video Question Answering with an Interactive Visual Adapter in LLMs" (arXiv
2402.13546) puts coarse tokens of all frames into the language model; inside it, trained adapters pick frames by the
instruction and read their patches. Here the same is done before the model and untrained: the frames that fit the
question best are read with all tokens that the memory holds, of all others `coarse` tokens are left, merged. What is
fetched costs no keys and values until a question wants it.

For memories that hold tokens. How well a frame fits is the cosine of its mean token and its best word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from onlooker.core.checks import whole
from onlooker.core.contracts import Refiner
from onlooker.core.unread import Unread
from onlooker.refine._frames import cosines, frames_among, means_of, shrunk, tokens_of


@dataclass(frozen=True)
class IVA(Refiner):
    """Fine tokens for the frames that fit, coarse ones for the rest."""

    realises: ClassVar[tuple[str, ...]] = ("iva",)
    takes: ClassVar[frozenset[str]] = frozenset({"tokens"})

    fine: int = 2
    """Frames that are read with all their tokens."""
    coarse: int = 2
    """Tokens of each other frame."""

    def __post_init__(self) -> None:
        whole("fine", self.fine, least=0, most=1 << 20)
        whole("coarse", self.coarse, least=1, most=1 << 20)

    def refine(self, recalled: Sequence[Unread], question: Tensor) -> Sequence[Unread]:
        """All frames and notes in the order of their times, most frames coarse."""
        places = frames_among(recalled)
        if not places:
            return recalled
        fits = cosines(means_of(recalled), question).amax(1)
        picked = {places[n] for n in fits.sort(descending=True, stable=True).indices[: self.fine].tolist()}
        return [one if place in picked else self._coarse(one) for place, one in enumerate(recalled)]

    def _coarse(self, one: Unread) -> Unread:
        tokens = tokens_of(one)
        return one if tokens is None else replace(one, content=shrunk(tokens, self.coarse))
