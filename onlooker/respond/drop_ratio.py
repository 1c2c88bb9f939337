"""Speak when far fewer tokens than usual could be dropped: the scene has changed (TimeChat-Online's trigger).

Yao et al., "TimeChat-Online", 2025 (arXiv 2504.17343): a frame of which a token-dropping compressor drops less than
60 % begins something new; the demo takes the tenth of all frames with the lowest ratio, which nobody knows while
watching. Changed to a causal form: a frame counts that keeps at least `floor`, is among the share `top` of the last
minute, and stands out from that minute's median by `margin`, so that a steady pan stays quiet. Costs nothing. With a
compressor that keeps a fixed share of every frame there is nothing to see: use it with one that drops what repeats.
"""

from collections import deque
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from onlooker.core.checks import number
from onlooker.core.contracts import Moment
from onlooker.respond._scored import Armed, Scored

MOST_FRAMES = 512


@dataclass
class LastMinute(Armed):
    """Shares of kept tokens of late."""

    times: deque[float] = field(default_factory=deque)
    kept: deque[float] = field(default_factory=deque)


@dataclass(frozen=True)
class DropRatio(Scored):
    """An outlier of the kept share."""

    realises: ClassVar[tuple[str, ...]] = ("timechat_online",)

    floor: float = 0.4
    """Least share of kept tokens that counts: 1 less the published drop ratio of 0.6."""
    top: float = 0.1
    """Share of the last minute's frames that may count."""
    margin: float = 0.2
    """How far above the minute's median."""
    window_s: float = 60.0
    """What the last minute is, in seconds."""
    _: KW_ONLY
    quiet_s: float = 2.0
    """Least seconds between two times it speaks."""
    clear: float | None = 0.9
    """Share of the threshold below which the score must fall before it speaks again; none: the quiet time is enough."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("floor", "top", "margin"):
            number(name, getattr(self, name), least=0.0, most=1.0, do="it is a share")
        number("window_s", self.window_s, above=0.0, unit="seconds", do="use 60")

    def new_state(self) -> LastMinute:
        return LastMinute()

    def weigh(self, moment: Moment, state: LastMinute) -> tuple[float, float] | None:
        """The kept share, and where it counts now. The first frame of a stream is new to everyone and tells nothing."""
        times, kept = state.times, state.kept
        if not times:
            times.append(moment.time_s)
            kept.append(min(moment.kept_ratio, self.floor))
            return None
        times.append(moment.time_s)
        kept.append(moment.kept_ratio)
        while times[0] < moment.time_s - self.window_s or len(times) > MOST_FRAMES:
            times.popleft()
            kept.popleft()
        ranked = sorted(kept)
        among = ranked[-max(1, int(self.top * len(ranked)))]
        return moment.kept_ratio, max(self.floor, among, ranked[len(ranked) // 2] + self.margin)
