"""From the stamps of a live stream to seconds since it was first seen, over losses, jumps and new connections.

A session begins (0 s) when its first picture arrives. Within a connection time goes on with the stamps, which are
steadier than arrivals; but no picture is from the future, and none may be old and pass for new:

1. The first stamp of a connection is now. So an outage is as long in the session as it was on the wall.
2. A picture that is ahead of its arrival shows that the first was late: the clock is moved back by as much. (A source
   that is played out at its own pace waits for the moment instead.)
3. A picture more than `max_lag_s` behind its arrival is late, and says so. When in `SETTLE_S` the lag hardly shrinks,
   it was no backlog but a pause of the sender's clock, and now is now again.
4. A stamp that goes back, or ahead by `MAX_JUMP_S` more than arrivals did, is a leap of the sender's clock: now is now.
5. A lag that stays is worked off by `DRIFT`, because no two clocks run alike.

Times strictly increase whatever happens.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from onlooker.video.source import SourceReport

SMALLEST_STEP_S = 0.001
MAX_BACK_S = 1.0
MAX_JUMP_S = 5.0
SETTLE_S = 2.0
CATCHING_UP = 0.25
DRIFT = 0.001


@dataclass(frozen=True, slots=True)
class PictureTime:
    """When a picture was taken, in the session's time."""

    time_s: float
    lag_s: float = 0.0
    """How much later it came than the promptest pictures do."""
    ahead_s: float = 0.0
    """How long to wait before it is due; only where pictures are played out."""
    is_late: bool = False
    """Too old to be shown as now."""


class LiveClock:
    """The clock of one connection of a live session; `began_s` and `last_s` tie it to the connections before.

    `began_s` is the arrival of the session's first picture on the clock `now` (None: none came yet), `last_s` the
    session time of its last picture. Counts repairs in `report`.
    """

    def __init__(
        self,
        report: SourceReport,
        *,
        began_s: float | None = None,
        last_s: float | None = None,
        max_lag_s: float = 3.0,
        is_paced: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.began_s = began_s
        self.last_s = last_s
        self._report = report
        self._max_lag_s = max_lag_s
        self._is_paced = is_paced
        self._now = now
        self._offset_s: float | None = None
        self._stamp_s = self._arrived_s = 0.0
        self._late_since: tuple[float, float] | None = None

    def see(self, pts: int | None, time_base: Fraction | None) -> PictureTime:
        """Tell when the picture was taken that has just arrived with the stamp `pts`, in units of `time_base` s."""
        now = self._now()
        if self.began_s is None:
            self.began_s = now
        arrived = now - self.began_s
        if pts is None or not time_base:
            self._report.num_guessed_times += 1
            return PictureTime(self._after_last(arrived))
        stamp = float(pts * time_base)
        if self._offset_s is None:
            self._offset_s = arrived - stamp
        elif self._has_leapt(stamp, arrived):
            self._report.num_clock_jumps += 1
            self._offset_s = arrived - stamp
            self._late_since = None
        else:
            self._offset_s += min(DRIFT * (arrived - self._arrived_s), max(0.0, arrived - stamp - self._offset_s))
        self._stamp_s, self._arrived_s = stamp, arrived
        return self._settle(stamp, arrived)

    def _has_leapt(self, stamp: float, arrived: float) -> bool:
        step, waited = stamp - self._stamp_s, arrived - self._arrived_s
        return step < -MAX_BACK_S or step > waited + MAX_JUMP_S

    def _settle(self, stamp: float, arrived: float) -> PictureTime:
        assert self._offset_s is not None
        lag = arrived - stamp - self._offset_s
        if lag < 0:
            self._late_since = None
            if self._is_paced:
                return PictureTime(self._after_last(arrived - lag), ahead_s=-lag)
            self._offset_s += lag
            lag = 0.0
        if lag <= self._max_lag_s:
            self._late_since = None
            return PictureTime(self._after_last(arrived - lag), lag)
        since, lag_then = self._late_since = self._late_since or (arrived, lag)
        if arrived - since >= SETTLE_S:
            self._late_since = None
            if lag > lag_then - CATCHING_UP * (arrived - since):
                self._report.num_clock_jumps += 1
                self._offset_s = arrived - stamp
                return PictureTime(self._after_last(arrived))
        return PictureTime(arrived - lag, lag, is_late=True)

    def _after_last(self, time_s: float) -> float:
        if self.last_s is not None and time_s <= self.last_s:
            self._report.num_repaired_times += 1
            time_s = self.last_s + SMALLEST_STEP_S
        self.last_s = time_s
        return time_s
