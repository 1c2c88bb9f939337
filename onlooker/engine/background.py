"""Work that nobody waits for: it rides in the passes of frames and questions, and gives way to them."""

from collections.abc import Callable, Sequence

from onlooker.engine.probing import Aside


class Background:
    """What is to be decoded when there is time. Bounded: what is too much, or waits too long, is dropped and counted.

    It takes part in a step only when no frame is left waiting behind that step, and so many works at a time as add
    little to what the step takes anyway: no frame waits for it longer than for the few tokens of a pass that it shares,
    or for the one pass that it is in. The oldest go first, so streams whose notes are due together write them in turn.
    """

    def __init__(self, most: int, patience_s: float, now: Callable[[], float]) -> None:
        self._most, self._patience_s, self._now = most, patience_s, now
        self._works: list[tuple[Aside, float]] = []
        self.dropped = 0
        """Works that were not finished: refused under load, or too old."""
        self.deferred = 0
        """Steps that works waited: frames were left waiting, or older works took what there was to spare."""

    def __len__(self) -> int:
        return len(self._works)

    def add(self, works: Sequence[Aside], *, overloaded: bool) -> None:
        """Take further works. Under load, or when there are too many, they are cancelled."""
        self.prune()
        for work in works:
            if overloaded or len(self._works) >= self._most:
                work.cancel()
                self.dropped += 1
            else:
                self._works.append((work, self._now()))

    def ready(self, *, gives_way: bool, most: int) -> list[Aside]:
        """The works that take part in the step that begins now: none while frames are left waiting behind it, else the
        oldest, at most so many."""
        now = self._now()
        for work, since in self._works:
            if now - since > self._patience_s and not work.done:
                work.cancel()
                self.dropped += 1
        self.prune()
        if gives_way:
            self.deferred += len(self._works)
            return []
        self.deferred += max(0, len(self._works) - most)
        return [work for work, _ in self._works[:most]]

    def end(self, session: object) -> None:
        """A stream is gone, and its works with it."""
        for work, _ in self._works:
            if work.session is session:
                work.cancel()
        self.prune()

    def prune(self) -> None:
        """Forget what is done, also what somebody cancelled."""
        self._works = [(work, since) for work, since in self._works if not work.done]
