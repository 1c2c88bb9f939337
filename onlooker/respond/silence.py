"""Speak unless the model is sure that nothing is to be said (VideoLLM-online's streaming EOS).

Chen et al., "VideoLLM-online", CVPR 2024 (arXiv 2406.11816), section 3.4: where a frame ends, the model has learnt to
predict a silence token or the beginning of a reply; below the threshold silence is forbidden, and the likeliest token
decides otherwise. Costs no pass: the frame was read anyway. Changed: a least time between two replies. A model that was
not trained so offers no silence; `threshold`, which asks it, is the closest it can do.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from onlooker.core.contracts import Moment
from onlooker.core.errors import InputError
from onlooker.respond._scored import Armed, Scored


@dataclass(frozen=True)
class Silence(Scored):
    """A threshold on silence."""

    needs: ClassVar[frozenset[str]] = frozenset({"silence_probability"})
    realises: ClassVar[tuple[str, ...]] = ("videollm_online",)

    theta: float = 0.725
    """Probability of silence below which it is forbidden; 0 leaves it to the likeliest token."""
    _: KW_ONLY
    quiet_s: float = 2.0
    """Least seconds between two times it speaks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.theta <= 1.0:
            raise InputError("theta is a probability", given=str(self.theta), do="0.725, as published")

    def weigh(self, moment: Moment, state: Armed) -> tuple[float, float] | None:
        """How unsure silence is; where another token is likelier still, that is enough."""
        if moment.silence_probability is None:
            return None
        unsure = 1.0 - moment.silence_probability
        # Speech begins below theta, and not at it: a hair's breadth above its complement.
        threshold = 1.0 - self.theta + 1e-9
        return unsure, threshold if moment.silence_is_likeliest else min(threshold, unsure)
