"""The table of the arms: the same questions are compared, and only true differences are called so."""

import json
import random

import pytest

from benchmarks import arms_table


def look(arm: str, level: str, worse: float, seed: int = 0) -> dict:
    """A sealed look in which `stc=19` loses a share of what dense has right, and `uniform=19` is dense again."""
    rng = random.Random(seed)
    dense = [[int(rng.random() < 0.8) for _ in range(8)] for _ in range(150)]
    worst = [[mark if rng.random() > worse else 0 for mark in clip] for clip in dense]
    texts = {name: " ".join("".join(map(str, clip)) for clip in clips)
             for name, clips in (("dense", dense), ("stc=19", worst), ("uniform=19", dense))}  # fmt: skip
    return {"arm": arm, "level": level, "sealed": {}, "marks": texts}


def test_true_differences_are_found_and_others_are_ties():
    lines = arms_table.compare([look("naive", "L2", 0.2), look("aware", "L2", 0.0, 1)])
    found = {(line["model"], line["setting"]): line for line in lines}
    assert found["pocket-naive", "stc=19"]["verdict"] == "worse"
    assert found["pocket-naive", "uniform=19"]["verdict"] == "tie"
    assert found["pocket-stc", "stc=19"]["verdict"] == "tie"
    assert found["pocket-naive", "dense"]["questions"] == 1200
    assert all(line["low"] <= line["right"] <= line["high"] for line in lines)
    assert all(line["p_holm"] >= line["p"] for line in lines if "p" in line)


def test_the_command_prints_a_table(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (look("naive", "L2", 0.2), {"step": 3})))
    arms_table.main(["--rows", str(file)])
    printed = capsys.readouterr().out
    assert "| `stc=19` |" in printed and " *" in printed and "Holm over 2 tests" in printed


def test_other_questions_are_refused():
    row = look("naive", "L2", 0.2)
    row["marks"]["stc=19"] = row["marks"]["stc=19"].replace(" ", "", 1)
    with pytest.raises(AssertionError, match="same questions"):
        arms_table.compare([row])
