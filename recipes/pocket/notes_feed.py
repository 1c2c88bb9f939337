"""Batches of clips and of texts for the training of notes, from forked processes."""

import multiprocessing
import random
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.pocket.tokenizer import Encoder
from recipes.pocket.told import ToldSettings, make_part
from recipes.pocket.told_texts import make_texts

if TYPE_CHECKING:
    from recipes.pocket.notes import Settings

PART = 16
"""Clips that a process makes at a time."""


def _made(job: tuple[int, ToldSettings, bool]) -> dict[str, np.ndarray]:
    number, settings, texts = job
    return (make_texts if texts else make_part)(number, PART, encoder_of(), settings)


_KNOWN: list[Encoder] = []


def encoder_of() -> Encoder:
    """That of this process, made on first use."""
    if not _KNOWN:
        _KNOWN.append(Encoder())
    return _KNOWN[0]


class Feed:
    """Batches of clips, or with `texts` of texts alone, from forked processes; made on the spot with `workers` 0. While
    processes fall behind, recent batches are given again, a few times in all."""

    def __init__(
        self, told: ToldSettings, settings: "Settings", workers: int, first: int = 0, *, texts: bool = False
    ) -> None:
        self.told, self.settings, self.next_part, self.texts = told, settings, first, texts
        self.size = settings.rows if texts else settings.clips
        self.most_uses = settings.most_text_uses if texts else settings.most_uses
        self.made = self.reused = 0
        self._recent: deque[list[Any]] = deque(maxlen=192)
        self._random = random.Random(first)
        self._pool = multiprocessing.get_context("fork").Pool(workers) if workers else None
        self._parts: deque[Any] = deque()
        self._ahead = 6 * max(1, workers)
        self._have: list[dict[str, np.ndarray]] = []

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches without end."""
        while True:
            need = -(-self.size // PART)
            while len(self._have) < need:
                if (part := self._part()) is not None:
                    self._have.append(part)
                    continue
                usable = [entry for entry in self._recent if entry[1] < self.most_uses]
                if usable:
                    entry = self._random.choice(usable)
                    entry[1] += 1
                    self.reused += 1
                    yield entry[0]
                else:
                    time.sleep(0.002)
            parts, self._have = self._have[:need], self._have[need:]
            batch = {name: np.concatenate([p[name] for p in parts])[: self.size] for name in parts[0]}
            self._recent.append([batch, 1])
            self.made += 1
            yield batch

    def _part(self) -> dict[str, np.ndarray] | None:
        if self._pool is None:
            self.next_part += 1
            return _made((self.next_part - 1, self.told, self.texts))
        while len(self._parts) < self._ahead:
            self._parts.append(self._pool.apply_async(_made, ((self.next_part, self.told, self.texts),)))
            self.next_part += 1
        ready = next((one for one in self._parts if one.ready()), None)
        if ready is None:
            return None
        self._parts.remove(ready)
        return ready.get()

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
