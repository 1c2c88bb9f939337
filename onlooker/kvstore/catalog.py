"""What a stream holds, by number, so that anyone may keep a copy as it is now without copying anything.

Questions look at a stream that goes on meanwhile. Were what they look at copied, every question would cost more the
longer the stream is; so the entries lie in a tree whose nodes are never changed, only replaced.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

from onlooker.core.spans import Span

T = TypeVar("T")
BITS = 5
WIDTH = 1 << BITS

_Node = tuple[int, tuple[Any, ...]]
"""How many entries lie below, and its children: nodes, or `(1, (value,))` at the bottom; None where there is none."""
_EMPTY: _Node = (0, (None,) * WIDTH)


class Catalog(Generic[T]):
    """Values (never None) by number from 0, in the order of their numbers.

    Every act costs a few steps, however many there are; so does `copy`.
    """

    __slots__ = ("_depth", "_root")

    def __init__(self) -> None:
        self._root: _Node = _EMPTY
        self._depth = 1

    def copy(self) -> "Catalog[T]":
        """A catalog of its own that holds the same."""
        twin: Catalog[T] = Catalog()
        twin._root, twin._depth = self._root, self._depth
        return twin

    def __setitem__(self, number: int, value: T) -> None:
        while number >> (BITS * self._depth):
            root = self._root
            # What lies below an empty root was removed: nothing of it is worth keeping.
            self._root = (root[0], (root if root[0] else None, *_EMPTY[1][1:]))
            self._depth += 1
        self._root = _put(self._root, self._depth, number, (1, (value,))) or _EMPTY

    def remove(self, number: int) -> T:
        """Drop a number; what it stood for. Raises `KeyError` when it is not there."""
        value = self[number]
        self._root = _put(self._root, self._depth, number, None) or _EMPTY
        return value

    def get(self, number: int) -> T | None:
        """The value of a number, None when it is not there."""
        if number < 0 or number >> (BITS * self._depth):
            return None
        node: Any = self._root
        for shift in range(BITS * (self._depth - 1), -1, -BITS):
            node = node[1][(number >> shift) & (WIDTH - 1)]
            if node is None:
                return None
        return node[1][0]

    def __getitem__(self, number: int) -> T:
        value = self.get(number)
        if value is None:
            raise KeyError(number)
        return value

    def __contains__(self, number: int) -> bool:
        return self.get(number) is not None

    def __len__(self) -> int:
        return self._root[0]

    def at(self, place: int) -> T:
        """The value at a place, counted from 0 over those that are there."""
        assert 0 <= place < len(self), place
        node: Any = self._root
        for _ in range(self._depth):
            for child in node[1]:
                if child is None:
                    continue
                if place < child[0]:
                    node = child
                    break
                place -= child[0]
        return node[1][0]

    def values(self, first: int = 0, last: int | None = None) -> Iterator[T]:
        """The values at places `first` to `last` (not included), ascending; by default all."""
        return _walk(self._root, self._depth, first, len(self) if last is None else last)


def _put(node: _Node | None, depth: int, number: int, leaf: _Node | None) -> _Node | None:
    """The node with another leaf below it; None when nothing is left."""
    if depth == 0:
        return leaf
    count, children = node or _EMPTY
    at = (number >> (BITS * (depth - 1))) & (WIDTH - 1)
    old = children[at]
    new = _put(old, depth - 1, number, leaf)
    count += (new[0] if new else 0) - (old[0] if old else 0)
    return (count, (*children[:at], new, *children[at + 1 :])) if count else None


def _walk(node: _Node, depth: int, first: int, last: int) -> Iterator[Any]:
    if depth == 0:
        yield node[1][0]
        return
    for child in node[1]:
        if last <= 0:
            return
        if child is not None:
            count = child[0]
            if first < count:
                yield from _walk(child, depth - 1, max(first, 0), min(last, count))
            first, last = first - count, last - count


class HasSpan(Protocol):
    """An entry that belongs to a block."""

    @property
    def span(self) -> Span:
        """What the block is."""
        ...


class Spans(Sequence[Span]):
    """The spans of some entries of a catalog, in stream order: a range of places, perhaps with the prefix before it.

    Made and cut at no cost; a catalog that is changed afterwards does not change it.
    """

    __slots__ = ("_bounds", "_entries", "_first", "_last", "_lead")

    def __init__(self, entries: Catalog[Any], first: int = 0, last: int | None = None, *, prefix: bool = False) -> None:
        """Places `first` to `last` (not included) of `entries`, whose values have a `span`; with `prefix`, place 0
        before them."""
        self._entries = entries
        self._lead = int(prefix)
        self._first, self._last = first, len(entries) if last is None else max(first, last)
        self._bounds: tuple[Any, int, int] | None = None
        """The prefix's entry, if it is among them, and the first and last number; looked up when it is first needed."""

    def __len__(self) -> int:
        return self._lead + self._last - self._first

    @overload
    def __getitem__(self, place: int) -> Span: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Span]: ...
    def __getitem__(self, place: int | slice) -> Span | Sequence[Span]:
        if isinstance(place, slice):
            first, last, step = place.indices(len(self))
            if step != 1:
                return [self[n] for n in range(first, last, step)]
            last = max(first, last)
            cut, lead = self._first - self._lead, self._lead
            has_lead = first < lead < last + 1
            return Spans(self._entries, cut + max(first, lead), cut + max(last, lead), prefix=has_lead)
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(place)
        return self._entries.at(0 if number < self._lead else self._first + number - self._lead).span

    def entries(self) -> Catalog[Any]:
        """A copy of the catalog that they are of."""
        return self._entries.copy()

    def find(self, number: int) -> Span | None:
        """The span of this number; None when it is not among them."""
        entry = self._entries.get(number)
        if entry is None:
            return None
        if self._bounds is None:
            first, last = 0, -1
            if self._first < self._last:
                first, last = self._entries.at(self._first).span.id, self._entries.at(self._last - 1).span.id
            self._bounds = self._entries.at(0) if self._lead else None, first, last
        lead, first, last = self._bounds
        return entry.span if entry is lead or first <= number <= last else None

    def between(self, since_s: float, until_s: float) -> "Spans":
        """The prefix, if it is among them, and what lies wholly between two times, in seconds."""
        lead = int(len(self) > 0 and self[0].kind == "prefix")
        first = bisect.bisect_left(self, since_s, lo=lead, key=lambda span: span.start_s)
        last = bisect.bisect_right(self, until_s, lo=first, key=lambda span: span.end_s)
        cut = self._first - self._lead
        return Spans(self._entries, cut + first, cut + last, prefix=bool(lead))

    def __iter__(self) -> Iterator[Span]:
        if self._lead:
            yield self._entries.at(0).span
        for entry in self._entries.values(self._first, self._last):
            yield entry.span

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType] - as of a list
