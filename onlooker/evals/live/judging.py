"""How good it was to speak at these times: hits and their delay, twice-told, false alarms, an area over the delay."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from onlooker.evals.live.scenes import Event

WINDOW_S = 5.0
"""An event must be told within so many seconds."""
AFTER_S = 3.0
"""What is told so long after a thing has gone is late, and no false alarm; nor is it quiet then."""
BEFORE_S = 0.5


@dataclass
class Judged:
    """What came of one request, or of several together (`+`)."""

    events: int = 0
    delays: list[float] = field(default_factory=list)
    """Of the events that were told in time, in seconds."""
    twice: int = 0
    """Further times at which a told event was told."""
    false: int = 0
    """Times at which there was nothing to tell."""
    quiet_s: float = 0.0
    """Time in which there was nothing to tell."""

    def __add__(self, other: "Judged") -> "Judged":
        sums = [getattr(self, name) + getattr(other, name) for name in ("twice", "false", "quiet_s")]
        return Judged(self.events + other.events, self.delays + other.delays, *sums)

    @property
    def recall(self) -> float:
        """Share of the events that were told in time."""
        return len(self.delays) / self.events if self.events else 0.0

    @property
    def f1(self) -> float:
        """Of events: what is told twice and what is false both count against it."""
        wrong = self.twice + self.false + self.events - len(self.delays)
        return 2 * len(self.delays) / (2 * len(self.delays) + wrong) if self.delays else 0.0

    @property
    def area(self) -> float:
        """Mean over events of the part of the window in which it had been told: max(0, 1 - delay / window), and 0 for
        one that was not. Quality over delay as in MMDuet2's PAUC, with right or wrong for a judge's marks."""
        return sum(max(0.0, 1 - delay / WINDOW_S) for delay in self.delays) / self.events if self.events else 0.0

    @property
    def false_an_hour(self) -> float:
        """False alarms per quiet hour."""
        return 3600 * self.false / self.quiet_s if self.quiet_s else 0.0

    @property
    def delay_s(self) -> float | None:
        """Time to speak, the median of what was told."""
        ranked = sorted(self.delays)
        return ranked[len(ranked) // 2] if ranked else None


def judge(times: Sequence[float], events: Sequence[Event], duration_s: float) -> Judged:
    """One request: the times at which it was told, in order, against its events."""
    out = Judged(len(events), quiet_s=duration_s)
    left = list(times)
    # Each event takes the first time in its window that no earlier event took.
    for event in events:
        inside = [at for at in left if event.start_s - 1e-6 <= at <= event.start_s + WINDOW_S + 1e-6]
        inside = [at for at in inside if at <= event.end_s + AFTER_S + 1e-6]
        if inside:
            out.delays.append(max(0.0, inside[0] - event.start_s))
            left.remove(inside[0])
    spans = merged([(event.start_s - BEFORE_S, event.end_s + AFTER_S) for event in events])
    out.quiet_s -= sum(min(b, duration_s) - max(0.0, a) for a, b in spans if a < duration_s)
    for at in left:
        if any(a - 1e-6 <= at <= b + 1e-6 for a, b in spans):
            out.twice += 1
        else:
            out.false += 1
    return out


def merged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time, each part once."""
    out: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out
