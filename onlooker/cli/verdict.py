"""Why a search for the most live streams ended where it did: only a limit that was reached is called one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onlooker.cli.trial import Cost, Demand, Trial


@dataclass(frozen=True)
class Verdict:
    """What is known of the number of streams that one device holds."""

    streams: int
    """Most that held in a trial."""
    fewer_than: int | None
    """Fewest that did not; None: none was tried that did not."""
    why: str
    """What they broke first (frame lag, first token, device memory, ...), or why nobody knows."""
    reached: bool
    """Whether it is a limit: a few more streams were tried, and did not hold."""

    @property
    def told(self) -> str:
        """In a sentence."""
        if self.reached:
            return f"{self.streams} streams hold; the limit is {self.why} ({self.fewer_than} do not hold)"
        if self.fewer_than is not None:
            return (
                f"at least {self.streams} streams hold, and {self.fewer_than} do not ({self.why}); "
                "the time of the search ended before the limit was found (--seconds)"
            )
        return f"at least {self.streams} streams hold; no limit was reached: {self.why}"

    def as_row(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"told": self.told}


def judge(best: Trial | None, trials: Sequence[Trial], most: int) -> Verdict:
    """The verdict on a search among at most so many streams."""
    held = best.streams if best else 0
    above = [trial for trial in trials if not trial.holds and trial.streams > held]
    broken = min(above, key=lambda trial: trial.streams, default=None)
    if broken is not None:
        return Verdict(held, broken.streams, broken.broke[0], is_close(held, broken.streams))
    why = f"no more than {most} were asked for (--most)" if held >= most else "the time of the search ended (--seconds)"
    return Verdict(held, None, why, False)


def by_cost(costs: Sequence[Cost], demand: Demand, question_share: float) -> dict[str, float]:
    """How many streams the frames' cost in the fullest steps leaves time for, if questions take this share of it:
    arithmetic, nothing that was tried."""
    if not costs:
        return {}
    fullest = max(costs, key=lambda cost: cost.frames)
    left = max(0.0, 1.0 - question_share)
    return {"frames_a_step": fullest.frames, "streams": left * 1000 / (fullest.frame_ms * demand.fps)}


def find_most(
    crowd: Any, first: int, most: int, seconds: float, on_trial: Callable[[Trial], None]
) -> tuple[Trial | None, list[Trial]]:
    """The largest number of streams that hold: doubling from `first` while they do, then halving the gap.

    Stops when the gap is five percent or the seconds are used up (see `Verdict`, which tells). Returns the best trial
    (None: not even one stream holds) and all trials.
    """
    began, trials = time.perf_counter(), []
    held, broken, streams = 0, most + 1, min(first, most)
    best: Trial | None = None
    while held < streams < broken:
        trial = crowd.trial(streams)
        trials.append(trial)
        on_trial(trial)
        if trial.holds:
            held, best = streams, trial
        else:
            broken = streams
        out_of_time = time.perf_counter() - began > seconds
        if is_close(held, broken) or (out_of_time and held):
            break
        streams = min(2 * held, most) if broken > most else (held + broken) // 2
    return best, trials


def is_close(held: int, broken: int) -> bool:
    """Whether a number that holds and one that does not are near enough for the limit to be found."""
    return broken - held <= max(1, 0.05 * held)
