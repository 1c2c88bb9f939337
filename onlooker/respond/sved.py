"""Speak when what was said last no longer fits what is seen (LiveStar's streaming verification decoding).

Yang et al., "LiveStar", NeurIPS 2025 (arXiv 2511.05299): after every frame the last caption is told again; when its
perplexity exceeds `alpha` times what it was, a new one is due. The caption is a leaf: it is read on a fork of the
memory and rolled back (`then=answer`), so that no frame sees it; with `then=note` it stays in the memory. Changed: the
reference is the mean log-perplexity of the first `warm` frames after the caption instead of one frame shown twice,
which an untrained model needs, and there is a least time between two captions.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from onlooker.core.checks import whole
from onlooker.core.contracts import Moment
from onlooker.core.errors import InputError
from onlooker.respond._scored import Armed, Scored


@dataclass
class Reference(Armed):
    """How well the caption fitted at first."""

    said_s: float | None = None
    """When the caption was said that this is about."""
    log_perplexity: float = 0.0
    """Mean of its first frames."""
    frames: int = 0
    """How many of them there were."""


@dataclass(frozen=True)
class Sved(Scored):
    """Verify, and speak only when that fails."""

    needs: ClassVar[frozenset[str]] = frozenset({"said_perplexity"})
    realises: ClassVar[tuple[str, ...]] = ("livestar",)

    alpha: float = 1.03
    """Ratio of perplexities above which a new caption is due; 1.02 to 1.04 are useful."""
    warm: int = 2
    """Frames whose mean is the reference."""
    _: KW_ONLY
    quiet_s: float = 1.0
    """Least seconds between two captions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1.0 <= self.alpha < float("inf"):
            raise InputError("alpha is a ratio of at least 1", given=str(self.alpha), do="1.03, as published")
        whole("warm", self.warm, least=1, most=1000)

    def new_state(self) -> Reference:
        return Reference()

    def weigh(self, moment: Moment, state: Reference) -> tuple[float, float] | None:
        """The ratio of perplexities; while nothing was said, enough to speak."""
        if moment.said_perplexity is None:
            # Something is being said, or the last attempt gave no words: after the quiet time there is another.
            return self.alpha, self.alpha
        if moment.said_s != state.said_s:
            state.said_s, state.log_perplexity, state.frames = moment.said_s, 0.0, 0
        told = math.log(moment.said_perplexity)
        if state.frames < self.warm:
            state.log_perplexity = (state.log_perplexity * state.frames + told) / (state.frames + 1)
            state.frames += 1
            return 1.0, self.alpha
        return math.exp(min(700.0, told - state.log_perplexity)), math.nextafter(self.alpha, math.inf)
