"""Tables of what training bought: shares of a loss with their intervals, and choices over seeds of twins."""

import json
import math

import numpy as np
import pytest

from benchmarks import cache_aware_table, twins_table


def row(arm: str, dense: str, cached: str, level: str = "L2") -> dict:
    return {"arm": arm, "level": level, "marks": {"dense": dense, "cacher=4:0.25": cached}}


def test_what_is_recovered_is_a_share_of_what_was_lost():
    dense, cached, adapted = "111 111 110", "100 110 100", "111 110 100"
    assert cache_aware_table.recovered(dense, cached, adapted)[0] == pytest.approx(2 / 4)
    assert cache_aware_table.recovered(dense, cached, dense)[0] == 1
    assert math.isnan(cache_aware_table.recovered(dense, dense, adapted)[0])


def test_its_interval_holds_a_known_truth():
    """Clips of eight marks; the Cacher loses 15 points, adapting gives back 60 % of that."""
    rng, inside, tables = np.random.default_rng(0), 0, 60
    for table in range(tables):
        hard = rng.beta(8, 2, (120, 1))
        dense = rng.random((120, 8)) < hard
        lost = dense & (rng.random((120, 8)) < 0.15)
        back = lost & (rng.random((120, 8)) < 0.6)
        texts = [" ".join("".join(map(str, clip)) for clip in marks.astype(int))
                 for marks in (dense, dense & ~lost, dense & ~lost | back)]  # fmt: skip
        _, low, high = cache_aware_table.recovered(*texts, seed=table)
        inside += low <= 0.6 <= high
    assert inside >= 0.88 * tables


def test_the_table_pairs_questions_and_refuses_others(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    rows = [row("pocket_naive", "11 11 10", "10 00 10"), row("adapted", "11 11 00", "11 10 10")]
    file.write_text("\n".join(map(json.dumps, rows)))
    cache_aware_table.main(["--rows", str(file)])
    assert "| adapted | L2 | 0.833 | 0.333 | 0.667 | 67% (" in capsys.readouterr().out
    file.write_text("\n".join(map(json.dumps, [rows[0], row("adapted", "11 11 1", "11 10 1")])))
    with pytest.raises(SystemExit, match="other questions"):
        cache_aware_table.main(["--rows", str(file)])
    with pytest.raises(SystemExit, match="no row of nobody"):
        cache_aware_table.main(["--rows", str(file), "--given", "nobody"])


def test_twins_are_compared_within_a_seed_and_told_over_seeds(tmp_path, capsys):
    def twin(mix: str, seed: int, pruner: float, by_chance: float) -> dict:
        scores = {name: {"all": 0.8} for name in twins_table.CHOICES}
        scores |= {"stc=19": {"all": pruner}, "keep=19": {"all": by_chance}}
        return {"mix": mix, "seed": seed, "level": "L2", "sealed": scores, "marks": {}}

    rows = [twin("none", s, 0.5 + 0.01 * s, 0.4 + 0.01 * s) for s in range(3)] + [twin("chance", 0, 0.6, 0.7)]
    gates = [{"mix": "none", "level": "L2", "validation": dense}
             for dense in ({"dense": 0.86, "last=1": 0.3, "oracle=19": 0.85, "keep=19": 0.7},
                           {"dense": 0.84, "last=1": 0.4, "oracle=19": 0.80, "keep=19": 0.7})]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows + gates)))
    twins_table.main(["--rows", str(file)])
    none, chance = capsys.readouterr().out.splitlines()[2:]
    assert "| 0.510 (0.485 to 0.535) |" in none and "| +10.0 (+10.0 to +10.0) |" in none
    assert "| 0.600 | 0.700 |" in chance and "| -10.0 |" in chance
    twins_table.main(["--rows", str(file), "--gates"])
    assert "0.025 (0.010 to 0.040): missed" in capsys.readouterr().out
