"""What was written into the memory of one stream, to be listed and found: saved and forked with its session."""

import itertools
from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from onlooker.core.checks import number
from onlooker.core.errors import InputError
from onlooker.core.events import Noted
from onlooker.core.spans import NOTES

KEPT = 4096
"""Notes that are listed; the memory decides by itself which of them it remembers."""


class NoteBook:
    """The newest notes of a stream, oldest first."""

    def __init__(self) -> None:
        self._notes: deque[Noted] = deque(maxlen=KEPT)

    def add(self, note: Noted) -> None:
        """A note was written."""
        self._notes.append(note)

    def find(self, words: str = "", since_s: float = 0.0) -> list[Noted]:
        """The notes in which all of these words are, in any case, from a stream time on."""
        wanted = words.casefold().split()
        return [
            note
            for note in self._notes
            if note.time_s >= since_s and all(word in note.text.casefold() for word in wanted)
        ]

    def newest(self, most: int) -> list[Noted]:
        """So many, oldest first."""
        return list(itertools.islice(reversed(self._notes), most))[::-1]

    def fork(self) -> "NoteBook":
        """An independent copy."""
        twin = NoteBook()
        twin._notes = self._notes.copy()
        return twin

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """No tensors, and facts."""
        return {}, {"notes": [[note.time_s, note.kind, note.text] for note in self._notes]}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over what `export` gave. Raises `InputError` for anything else."""
        self._notes.clear()
        for time_s, kind, text in facts["notes"]:
            if kind not in NOTES or not isinstance(text, str):
                raise InputError("a note of a snapshot is damaged", given=repr(text)[:80], do="take a new snapshot")
            self._notes.append(Noted(number("time of a note", time_s, least=0.0), text, kind))
