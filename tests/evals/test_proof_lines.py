"""Proof lines that measurements decide: what is asked exists, and verdicts are what the answers say."""

import argparse

import pytest

from benchmarks import stream_lines, system_lines
from onlooker.core import registry
from onlooker.core.systems import listed
from onlooker.evals.run_settings import check

LINES = [*system_lines.LINES, *system_lines.SWEEPS, *stream_lines.LINES]


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.key}-{line.number}")
def test_a_line_is_one_of_a_system_and_names_methods_that_there_are(line):
    system = next(one for one in listed() if one.key == line.key)
    assert 1 <= line.number <= len(system.proofs)
    if isinstance(line, stream_lines.Line):
        for name in (line.ours, *dict(line.rivals)):
            assert registry.make("memory", name.partition(" ")[0])
        assert line.stream in stream_lines.STREAMS
        return
    given = argparse.Namespace(part=240, model="pocket-naive", device="cpu", seeds="", parallel=4)
    for side in line.sides:
        check(system_lines.settings(line.key, side, 0, given))


def test_the_clips_of_a_line_are_its_own():
    names = {system_lines.sealed(key, part) for key in system_lines.SUITES for part in range(6)}
    assert len(names) == 6 * len(system_lines.SUITES)
    assert len({stream_lines.seeds(stream) for stream in stream_lines.STREAMS}) == len(stream_lines.STREAMS)


def answers(key: str, side: str, right: list[float], tokens: int = 10, part: int = 0) -> dict:
    ids = [f"{part}-{n}" for n in range(len(right))]
    return {
        "key": key, "part": part, "side": side, "ids": ids, "tasks": ["ever", "when"] * (len(right) // 2),
        "videos": [f"{part}-{n // 4}" for n in range(len(right))], "worth": right, "tokens": [tokens] * len(right),
        "most_bytes": 5, "failed": 0, "settings": {}, "commit": "c", "versions": "v", "card": "cpu",
    }  # fmt: skip


LINE = system_lines.Line("tifre", 1, {"refiner": "a"}, ({"refiner": "b"},), 0.1)
SURE, EVEN = [1.0] * 80, [1.0, 0.0] * 40


@pytest.mark.parametrize(
    ("line", "ours", "rival", "tokens", "holds"),
    [
        (LINE, SURE, EVEN, 10, True),
        (LINE, SURE, EVEN, 12, False),  # read more than the rival
        (LINE, SURE, SURE, 10, False),
        (LINE, [1.0] * 2 + EVEN[2:], EVEN, 10, False),  # too small a gap
        (system_lines.Line("tifre", 1, LINE.ours, LINE.rivals, 0.0, same=True), EVEN, EVEN, 10, True),
        (system_lines.Line("tifre", 1, LINE.ours, LINE.rivals, 0.0, same=True), SURE, EVEN, 10, False),
        (system_lines.Line("tifre", 1, LINE.ours, LINE.rivals, 0.0, of=0.4), EVEN, SURE, 10, True),
        (system_lines.Line("tifre", 1, LINE.ours, LINE.rivals, 0.0, of=0.6), EVEN, SURE, 10, False),
        (system_lines.Line("tifre", 1, LINE.ours, LINE.rivals, -0.02), [0.0, *SURE[1:]], SURE, 10, True),
        (system_lines.Line("tifre", 1, LINE.ours, LINE.rivals, -0.01), [0.0, *SURE[1:]], SURE, 10, False),
        (system_lines.Line("tifre", 1, LINE.ours, LINE.rivals, 0.1, tasks=("when",)), SURE, EVEN, 10, True),
        (system_lines.Line("tifre", 1, LINE.ours, LINE.rivals, 0.1, tasks=("ever",)), SURE, EVEN, 10, False),
    ],
)  # fmt: skip
def test_a_line_holds_by_what_it_claims(line, ours, rival, tokens, holds):
    rows = [answers("tifre", "refiner=a", ours, tokens), answers("tifre", "refiner=b", rival)]
    (row,) = system_lines.judged([system_lines.verdict(line, rows)])
    assert row["holds"] is holds
    assert system_lines.show([row]).count("\n") == 2


def test_parts_count_together_and_a_side_without_answers_decides_nothing():
    half = [answers("tifre", f"refiner={side}", SURE, part=part) for side in "ab" for part in (0, 1)]
    assert system_lines.verdict(LINE, half)["gaps"][0]["questions"] == 160
    assert system_lines.verdict(LINE, half[:2]) is None


def test_a_side_on_which_questions_failed_is_no_score():
    rows = [answers("tifre", "refiner=a", SURE), answers("tifre", "refiner=b", [0.0] * 80) | {"failed": 3}]
    assert system_lines.verdict(LINE, rows) is None


def test_a_sweep_compares_the_cheapest_settings_that_still_answer_as_well():
    sweep = system_lines.Sweep("v_rex", 2, ({"memory": "a"}, {"memory": "b"}), ({"memory": "c"},), {}, -0.01)
    rows = [
        answers("v_rex", "plain", SURE, 100), answers("v_rex", "memory=a", EVEN, 10),
        answers("v_rex", "memory=b", SURE, 40), answers("v_rex", "memory=c", SURE, 50),
    ]  # fmt: skip
    row = system_lines.swept(sweep, rows)
    assert (row["tokens"], row["rival_tokens"], row["holds"]) == (40, 50, True)
    rows[3]["tokens"] = [30] * 80
    assert not system_lines.swept(sweep, rows)["holds"]
    rows[2]["worth"] = EVEN
    assert system_lines.swept(sweep, rows)["tokens"] is None


def test_holm_is_over_all_claims_of_a_file():
    alike = [0.0] * 12 + EVEN[12:]
    rows = [system_lines.verdict(LINE, [answers("tifre", "refiner=a", SURE), answers("tifre", "refiner=b", EVEN)])]
    rows += [
        system_lines.verdict(LINE, [answers("tifre", "refiner=a", EVEN), answers("tifre", "refiner=b", alike)])
        for _ in range(9)
    ]
    found = system_lines.judged(rows)
    assert all(row["gaps"][0]["p_corrected"] > row["gaps"][0]["p"] for row in found[1:])


def watched(memory: str, stream: int, right: float, tokens: int = 100) -> dict:
    said = [{"task": task, "age_s": age, "worth": right, "tokens": tokens} for task in ("ever", "present")
            for age in (0.0, 200.0, 300.0)]  # fmt: skip
    facts = dict.fromkeys(("model", "minutes", "fps", "compressor", "device", "commit", "versions"), "x")
    return {"memory": memory, "stream": stream, "answers": said} | facts


def test_streams_are_compared_stream_by_stream_at_equal_tokens():
    line = stream_lines.Line("livevlm", 2, "half_hour", "a", (("b", 0.0),), ("ever",), (100.0, float("inf")))
    rows = [watched("a", n, 1.0) for n in range(12)] + [watched("b", n, 0.5) for n in range(11)]
    (row,) = stream_lines.judged([stream_lines.verdict(line, rows)])
    assert row["holds"] and row["gaps"][0]["questions"] == 22 and row["gaps"][0]["streams"] == 11
    assert "yes" in stream_lines.show([row])
    (row,) = stream_lines.judged(
        [stream_lines.verdict(line, [watched("a", n, 1.0, 120) for n in range(12)] + rows[12:])]
    )
    assert not row["holds"] and not row["gaps"][0]["fits"]
    assert stream_lines.verdict(line, rows[:12]) is None
