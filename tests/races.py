"""What an interpreter of kernels cannot show: programs of one launch that get into each other's way.

It runs the programs of a launch one after another, a GPU runs them at once and in any order. So every address that a
program reads or writes is noted, and a launch fails in which one program writes what another one reads or writes
(numbers that are equal may be written twice; atomic operations are left out). Memory that nobody wrote holds NaN, or
the largest whole number, while this watches.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class Race(AssertionError):
    """Two programs of a launch use one address, and one of them writes there."""


class Watch:
    """Addresses that the programs of one launch read and wrote, element by element."""

    def __init__(self, kernel: str) -> None:
        self._kernel = kernel
        self._read: list[tuple[int, np.ndarray]] = []
        self._written: list[tuple[int, np.ndarray, np.ndarray]] = []

    def read(self, program: int, at: np.ndarray, mask: np.ndarray) -> None:
        self._read.append((program, np.atleast_1d(at[mask]).ravel()))

    def write(self, program: int, at: np.ndarray, mask: np.ndarray, what: np.ndarray) -> None:
        what = np.broadcast_to(what, at.shape)[mask]
        self._written.append((program, np.atleast_1d(at[mask]).ravel(), np.atleast_1d(what).ravel()))

    def check(self) -> None:
        """Raises `Race`."""
        if not self._written or len({program for program, *_ in (*self._read, *self._written)}) < 2:
            return
        at, what, who = self._last_writes()
        double = (at[1:] == at[:-1]) & (what[1:] != what[:-1]) & ~(np.isnan(what[1:]) & np.isnan(what[:-1]))
        if double.any():
            place = int(double.nonzero()[0][0])
            raise Race(f"{self._kernel}: programs {who[place]} and {who[place + 1]} write other numbers to one address")
        if not self._read or not len(at):
            return
        read = np.concatenate([addresses for _, addresses in self._read])
        reader = np.concatenate([np.full(len(addresses), program) for program, addresses in self._read])
        first, last = np.searchsorted(at, read, "left"), np.searchsorted(at, read, "right") - 1
        for found in (first, last):  # of those that write there
            inside = np.clip(found, 0, len(at) - 1)
            clash = (inside == found) & (at[inside] == read) & (who[inside] != reader)
            if clash.any():
                place = int(clash.nonzero()[0][0])
                raise Race(f"{self._kernel}: program {reader[place]} reads what program {who[inside][place]} writes")

    def _last_writes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Addresses in order, and what each program wrote there last: addresses, numbers, programs."""
        at = np.concatenate([addresses for _, addresses, _ in self._written])
        what = np.concatenate([numbers.astype(np.float64) for *_, numbers in self._written])
        who = np.concatenate([np.full(len(addresses), program) for program, addresses, _ in self._written])
        order = np.lexsort((who, at))  # keeps what is alike in the order it was written in
        at, what, who = at[order], what[order], who[order]
        last = np.append((at[1:] != at[:-1]) | (who[1:] != who[:-1]), True)[: len(at)]
        return at[last], what[last], who[last]


@contextmanager
def watched(monkeypatch: Any) -> Iterator[None]:
    """Every launch in the interpreter is looked at, and memory that nobody wrote is filled."""
    from triton.runtime import interpreter

    builder, current = interpreter.interpreter_builder, [Watch("")]
    execute = interpreter.GridExecutor.__call__
    load, store = type(builder).create_masked_load, type(builder).create_masked_store

    def program(me: Any) -> int:
        (x, y, z), (_, height, depth) = me.grid_idx, me.grid_dim
        return (x * height + y) * depth + z

    def executed(me: Any, *args: Any, **kwargs: Any) -> None:
        current[0] = Watch(me.fn.__name__)
        execute(me, *args, **kwargs)
        current[0].check()

    def loaded(me: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        current[0].read(program(me), ptrs.data, np.broadcast_to(mask.data, ptrs.data.shape).astype(bool))
        return load(me, ptrs, mask, *rest)

    def stored(me: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        mask_there = np.broadcast_to(mask.data, ptrs.data.shape).astype(bool)
        current[0].write(program(me), ptrs.data, mask_there, value.data)
        return store(me, ptrs, value, mask, *rest)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", executed)
    monkeypatch.setattr(type(builder), "create_masked_load", loaded)
    monkeypatch.setattr(type(builder), "create_masked_store", stored)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # new memory is filled then
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


__all__ = ["Race", "Watch", "watched"]
