"""A catalog against a plain dict, its copies against what it held when they were made, and a bound on its work."""

import random
import tracemalloc

import pytest

from onlooker.core.spans import Span
from onlooker.kvstore.catalog import Catalog, Spans


class Entry:
    def __init__(self, span: Span) -> None:
        self.span = span


def entry(number: int) -> Entry:
    return Entry(Span(number, "prefix" if number == 0 else "vision", 3, number * 0.5, number * 0.5))


@pytest.mark.parametrize("seed", range(4))
def test_it_is_a_dict_in_order_whose_copies_stand_still(seed):
    rng = random.Random(seed)
    catalog, plain, copies = Catalog(), {}, []
    number = 0
    for _ in range(1500):
        act = rng.random()
        if act < 0.6 or not plain:
            number += rng.choice((1, 1, 1, 5, 40))
            catalog[number] = f"{number}"
            plain[number] = f"{number}"
        elif act < 0.75:
            chosen = rng.choice(list(plain))
            catalog[chosen] = "changed"
            plain[chosen] = "changed"
        elif act < 0.97:
            chosen = rng.choice(list(plain)[: 5 if seed % 2 else None])
            assert catalog.remove(chosen) == plain.pop(chosen)
        else:
            copies.append((catalog.copy(), dict(plain)))
        if rng.random() < 0.02:
            plain.clear() if seed == 3 else None
            if seed == 3:
                for left in [n for n in range(number + 1) if n in catalog]:
                    catalog.remove(left)
    for held, expected in [(catalog, plain), *copies]:
        assert list(held.values()) == list(expected.values())
        assert len(held) == len(expected)
        assert [held.at(place) for place in range(len(held))] == list(expected.values())
        assert all(held[n] == value for n, value in expected.items())
        assert all((n in held) == (n in expected) for n in range(-2, number + 3))
        assert list(held.values(3, 9)) == list(expected.values())[3:9]
    with pytest.raises(KeyError):
        catalog[number + 1]


def test_spans_are_a_list_that_is_cut_at_no_cost():
    catalog = Catalog()
    for number in range(100):
        catalog[number] = entry(number)
    for gone in (3, 4, 50):
        catalog.remove(gone)
    plain = [one.span for one in catalog.values()]
    spans = Spans(catalog)
    assert spans == plain and list(spans) == plain
    cuts = [
        slice(a, b, c) for a in (None, 0, 1, 2, 5, -3, 200) for b in (None, 0, 1, 3, -1, 60) for c in (None, 1, 2, -1)
    ]
    late = spans.between(20.0, 30.0)
    listed = [plain[0], *(s for s in plain[1:] if s.start_s >= 20.0 and s.end_s <= 30.0)]
    for lazy, full in ((spans, plain), (late, listed), (spans[1:], plain[1:]), (spans[:0], [])):
        assert list(lazy) == full and len(lazy) == len(full)
        assert [lazy[n] for n in range(-len(full), len(full))] == [*full, *full]
        for cut in cuts:
            assert list(lazy[cut]) == full[cut], cut
            assert list(lazy[cut][1:]) == full[cut][1:], cut
            assert list(lazy[cut][:1]) == full[cut][:1], cut
        for wrong in (len(full), -len(full) - 1):
            with pytest.raises(IndexError):
                lazy[wrong]
    assert list(late.between(21.0, 22.0)) == [plain[0], *(s for s in plain if 21.0 <= s.start_s <= 22.0)]
    assert list(spans.between(20.1, 20.2)) == plain[:1]
    assert list(spans[1:].between(0.0, 1.0)) == plain[1:3]


def test_no_act_costs_more_because_there_are_more():
    def peak(act, *given) -> int:
        tracemalloc.start()
        act(*given)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    def work(size: int) -> list[int]:
        catalog = Catalog()
        for number in range(size):
            catalog[number] = entry(number)
        return [
            peak(catalog.copy),
            peak(lambda: Spans(catalog).between(100.0, 300.0)[1:][-5:]),
            peak(catalog.__setitem__, size // 2, entry(0)),
            peak(catalog.__setitem__, size, entry(size)),
            peak(catalog.remove, 1),
        ]

    used = [work(1_000), work(30_000)]
    # Other threads of this process may take some bytes meanwhile; a copy of the large one has 240,000.
    assert all(large < 2 * small + 10_000 for small, large in zip(*used, strict=True)), used
