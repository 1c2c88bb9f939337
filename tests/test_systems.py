"""The status of the published systems cannot lie: it follows from declarations, proofs and measurements."""

import sys
from pathlib import Path

import pytest

from onlooker.core.systems import Status, System, listed, statuses

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import systems as tool  # noqa: E402 - a tool, no part of the package


def a_system(*proofs: str) -> System:
    return System(1, "x", "X", "an idea", "a method", "adapts", proofs)


def test_every_system_is_listed_once_with_its_proof() -> None:
    rows = listed()
    assert [row.number for row in rows] == list(range(1, 65)) and len({row.key for row in rows}) == 64
    assert all(row.idea and row.here and row.proofs for row in rows)
    assert {row.aim for row in rows} == {"reproduces", "adapts", "borrows"}


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (Status(), "not yet"),
        (Status(proven=(1, 2)), "not yet"),  # proofs of nothing
        (Status(declared=("memory/x",)), "not yet"),
        (Status(declared=("memory/x",), proven=(1,)), "not yet"),
        (Status(declared=("memory/x",), proven=(1,), failed=(2,)), "failed"),
        (Status(declared=("memory/x",), proven=(1, 2)), "adapts"),
    ],
)
def test_a_system_works_only_when_it_is_declared_and_every_line_is_proven(status: Status, word: str) -> None:
    assert status.word(a_system("one", "two")) == word


def test_whatever_is_open_says_what_it_waits_for() -> None:
    status = statuses()
    silent = [row.key for row in listed() if status[row.key].word(row) == "not yet" and not row.waits]
    assert not silent


def test_every_measured_line_says_what_was_found() -> None:
    assert all(text for row in listed() for text in row.found.values())


def test_what_is_shown_is_what_is_found() -> None:
    assert tool.found(listed()) == statuses()
    assert tool.page(listed(), statuses()) == tool.PAGE.read_text(encoding="utf-8")


def test_a_line_that_was_measured_and_failed_is_not_proven_by_a_test(monkeypatch) -> None:
    monkeypatch.setattr(tool, "measured", lambda: (tool.defaultdict(set), tool.defaultdict(set, {"rekv": {1}})))
    (rekv,) = [row for row in listed() if row.key == "rekv"]
    assert tool.found(listed())["rekv"].word(rekv) == "failed"


@pytest.mark.parametrize(("key", "lines"), [("no_such_system", {1}), ("rekv", {9})])
def test_a_proof_of_nothing_is_refused(monkeypatch, key: str, lines: set[int]) -> None:
    monkeypatch.setattr(tool, "proven", lambda: tool.defaultdict(set, {key: lines}))
    with pytest.raises(SystemExit, match=key):
        tool.found(listed())
