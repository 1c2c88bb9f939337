"""Levels made as hard as a model needs: the pictures only, chosen on validation clips, and looked at as chosen."""

import json
from dataclasses import asdict

import pytest

from onlooker.world import LEVELS
from recipes.pocket import harden


@pytest.fixture
def levels_as_they_were():
    before = dict(LEVELS)
    yield
    LEVELS.update(before)


def test_hardness_is_in_the_pictures_alone():
    level = LEVELS["L2"]
    assert harden.harder(level, 0) == level
    changed = {name for name, value in asdict(harden.harder(level, 5)).items() if value != getattr(level, name)}
    assert changed == {"noise_sigma", "contrast", "damage_share", "damage"}
    assert all(harden.harder(LEVELS[name], 20).damage <= 0.9 for name in LEVELS)


@pytest.mark.usefixtures("levels_as_they_were")
def test_the_step_nearest_the_middle_is_taken_and_looked_at(tmp_path, monkeypatch):
    """Accuracies are given here; clips, files and the levels that the second command sees are the real ones."""
    dense, seen = iter((0.97, 0.91, 0.84, 0.6)), []

    def evaluate(model, encoder, data, settings, device, dtype, **_):
        seen.append(len(data.records))
        return {setting: {"all": next(dense) if len(seen) <= 4 else 0.5} for setting in settings[:1]}

    def sealed_look(model, encoder, sets, device, dtype, file, about):
        harden.note(file, about | {"sealed": {}, "is": {name: LEVELS[name].damage for name in sets if name != "L0"}})

    monkeypatch.setattr(harden, "evaluate", evaluate)
    monkeypatch.setattr(harden, "sealed_look", sealed_look)
    monkeypatch.setattr(harden, "ready", lambda path: (None, None, None, None))
    plain, file, to = LEVELS["L2"], tmp_path / "hard" / "tried.jsonl", tmp_path / "looks.jsonl"
    harden.main(["--model", "some", "--file", str(file), "--levels", "L2", "--steps", "4", "--clips", "1",
                 "--workers", "0"])  # fmt: skip
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[-1]["chosen"] == 2 and lines[-1]["is"]["damage"] == harden.harder(plain, 2).damage
    LEVELS["L2"] = plain
    harden.main(["--look", "one", "two", "--file", str(file), "--sealed", "a-test", "--to", str(to), "--clips", "1",
                 "--gate-clips", "1", "--workers", "0"])  # fmt: skip
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    assert [row["arm"] for row in rows if "sealed" in row] == ["one", "two"]
    assert rows[-1]["is"]["L2"] == harden.harder(plain, 2).damage > plain.damage
    assert {row["level"] for row in rows if "validation" in row} == {"L0", "L2"}
    only = tmp_path / "only.jsonl"
    harden.main(["--look", "one", "--file", str(file), "--levels", "L2", "--sealed", "a-test", "--to", str(only),
                 "--clips", "1", "--gate-clips", "1", "--workers", "0"])  # fmt: skip
    assert {row["level"] for row in map(json.loads, only.read_text().splitlines()) if "level" in row} == {"L2"}
