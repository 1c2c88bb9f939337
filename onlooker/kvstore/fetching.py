"""Blocks brought together on the device from wherever they lie: rows there, codes there, or the host's memory."""

import itertools
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onlooker.kernels.ranges import copy_ranges
from onlooker.kvstore.coded import BLOCKS_AT_ONCE, Coded, decode


class Lent:
    """Blocks in the host's memory that a kernel may still be reading: nobody else keeps them for it."""

    def __init__(self) -> None:
        self._blocks: list[Coded] = []
        self._read: Any = None

    def add(self, blocks: list[Coded], device: torch.device) -> None:
        """What is reading them has just been launched."""
        if device.type != "cuda" or not blocks:
            return
        if self._read is not None and self._read.query():
            self._blocks.clear()
        self._blocks += blocks
        self._read = torch.cuda.Event()
        self._read.record()

    def end(self) -> None:
        """Wait until they have been read, and let go of them."""
        if self._read is not None:
            self._read.synchronize()
        self._blocks, self._read = [], None


class Fetch:
    """Some layers of blocks, one behind the other, on their way into keys and values `[layers, kv_heads, rows,
    head_dim]`. With `kernels` whatever lies in rows comes in one launch, and codes in one for each part of them."""

    def __init__(
        self, picked: slice, num_layers: int, into: tuple[Tensor, Tensor], kernels: ModuleType | None, lent: Lent
    ) -> None:
        """`picked` of `num_layers` are fetched."""
        self._picked, self._num_layers, self._into, self._kernels, self._lent = picked, num_layers, into, kernels, lent
        self._rows: list[tuple[Tensor, Tensor, slice]] = []
        self._files: list[tuple[Tensor, Tensor, slice]] = []
        self._facts: list[tuple[int, ...]] = []
        """Of blocks that a kernel reads: see `_facts`."""
        self._codes: dict[tuple[int, int, bool], list[tuple[Coded, slice]]] = {}
        self._hosts: list[Coded] = []

    def rows(self, keys: Tensor, values: Tensor, to: slice) -> None:
        """From keys and values of all layers, `[layers, kv_heads, rows, head_dim]`, dense in a row."""
        self._rows.append((keys, values, to))

    def block(self, coded: Coded, to: slice) -> None:
        """From a block as its codec wrote it."""
        if not coded.codec.plain:
            self._codes.setdefault((id(coded.codec), coded.num_tokens, coded.on_disk), []).append((coded, to))
        elif self._kernels is None or coded.on_disk:  # memory of a file is not pinned: no kernel reads it
            self._files.append((coded.parts["keys"], coded.parts["values"], to))
        else:  # keys of all layers, then as many values
            address, heads = coded.address, self._into[0].shape[1]
            by_head = coded.num_tokens
            self._facts.append((address, address + coded.nbytes // 2, heads * by_head, by_head, to.start, by_head))
        if coded.slab.device.type == "cpu" and not coded.on_disk:
            self._hosts.append(coded)

    def run(self) -> None:
        """Bring all of them. Raises `CapacityError` when the device has no memory for codes on their way."""
        files = self._files
        if self._kernels is None:
            files = files + self._rows
        elif self._rows or self._facts:
            self._run_ranges(self._kernels)
        for *parts, to in files:
            for part, into in zip(parts, self._into, strict=True):
                into[:, :, to].copy_(part[self._picked], non_blocking=True)
        for (_, _, on_disk), slabs in self._codes.items():  # of one size and codec
            kernels = None if on_disk else self._kernels
            at_once = max(1, BLOCKS_AT_ONCE * self._num_layers // len(self._into[0]))
            for first in range(0, len(slabs), at_once):
                self._decode(slabs[first : first + at_once], kernels)
        if self._kernels is not None:
            self._lent.add(self._hosts, self._into[0].device)

    def _run_ranges(self, kernels: ModuleType) -> None:
        """One range for each block, layer, head, and keys or values."""
        keys, values = self._into
        size, (layers, heads) = keys.element_size(), keys.shape[:2]
        row = keys.shape[3] * size
        facts = [*self._facts, *(_facts(*one) for one in self._rows)]
        from_keys, from_values, by_layer, by_head, start, count = np.array(facts, dtype=np.int64).T[:, :, None, None]
        layer, head = np.arange(layers)[None, :, None], np.arange(heads)[None, None, :]
        way = (by_layer * (layer + self._picked.start) + by_head * head) * row
        place = (keys.stride(0) * layer + keys.stride(1) * head) * size + start * row
        ranges = np.empty((2, *way.shape, 3), dtype=np.int64)
        ranges[0, ..., 0], ranges[1, ..., 0] = from_keys + way, from_values + way
        ranges[0, ..., 1], ranges[1, ..., 1] = keys.data_ptr() + place, values.data_ptr() + place
        ranges[..., 2] = count * row
        copy_ranges(ranges.reshape(-1, 3), keys.device, kernels)

    def _decode(self, slabs: list[tuple[Coded, slice]], kernels: ModuleType | None) -> None:
        """Bring some layers of blocks of one size and codec to their places."""
        into = self._into
        decoded = decode([slab for slab, _ in slabs], self._picked, into[0].dtype, into[0].device, kernels)
        # Neighbours stay neighbours: one copy for each run of them.
        count, starts = slabs[0][0].num_tokens, [to.start for _, to in slabs]
        breaks = [n for n, (one, two) in enumerate(itertools.pairwise(starts), 1) if two - one != count]
        for first, last in itertools.pairwise([0, *breaks, len(slabs)]):
            rows = slice(starts[first], starts[first] + (last - first) * count)
            for part, to in zip(decoded, into, strict=True):
                to[:, :, rows].unflatten(2, (last - first, count)).copy_(part[first:last].permute(1, 2, 0, 3, 4))


def _facts(keys: Tensor, values: Tensor, to: slice) -> tuple[int, ...]:
    """Addresses of keys and values, rows from layer to layer and from head to head, first row where they go, rows."""
    dim = keys.shape[3]
    steps = keys.stride(0) // dim, keys.stride(1) // dim
    return keys.data_ptr(), values.data_ptr(), *steps, to.start, to.stop - to.start
