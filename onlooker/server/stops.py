"""Stop sequences: an answer ends before the first of them, wherever its tokens happen to be cut."""


class Stops:
    """Lets an answer's text through piece by piece until one of some sequences is in it, which is held back.

    Text that may turn out to be the beginning of a sequence waits until that is known, so what was let through never
    has to be taken back.
    """

    def __init__(self, sequences: tuple[str, ...]) -> None:
        self._sequences = sequences
        self._held = ""
        self.said = ""
        """What was let through so far."""
        self.reached = False
        """Whether a sequence was found: nothing more is let through."""

    def feed(self, text: str) -> str:
        """What may be said now that `text` was written."""
        if self.reached:
            return ""
        held = self._held + text
        places = [place for one in self._sequences if (place := held.find(one)) >= 0]
        if places:
            self.reached = True
            return self._let_through(held[: min(places)], "")
        keep = max((_overlap(held, one) for one in self._sequences), default=0)
        return self._let_through(held[: len(held) - keep], held[len(held) - keep :])

    def flush(self) -> str:
        """What still waits; for when nothing more is written."""
        return self._let_through("" if self.reached else self._held, "")

    def _let_through(self, text: str, held: str) -> str:
        self._held = held
        self.said += text
        return text


def _overlap(text: str, sequence: str) -> int:
    """Length of the longest end of `text` that begins `sequence`, which is not in it as a whole."""
    return next((n for n in range(min(len(text), len(sequence) - 1), 0, -1) if text.endswith(sequence[:n])), 0)
