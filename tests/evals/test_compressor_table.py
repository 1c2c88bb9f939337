"""The table of compressors says better only where it is, and nothing of runs that failed."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compressors.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("compressor_tables", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows(path, better=30, failed=0):
    """160 questions on 40 clips: half right by chance; one method is right on `better` more of them."""
    ids, plain = [f"q{n:03d}" for n in range(160)], [float(n % 2) for n in range(160)]
    good = list(plain)
    for n in [n for n in range(160) if not n % 2][:better]:
        good[n] = 1.0
    about = {"type": "questions", "suite": "x", "clips": "x", "ids": ids, "tasks": ["a", "b"] * 80}
    made = [about | {"videos": [f"v{n // 4}" for n in range(160)]}]
    names = {
        "all tokens": (good, 64),
        "dtd @ 0.25": (good, 16),
        "evs @ 0.25": (plain, 16),
        "uniform @ 0.25": (plain, 16),
    }
    names |= {f"random, seed {seed} @ 0.25": (plain, 16) for seed in range(3)}
    for name, (worth, kept) in names.items():
        row = {"type": "run", "name": name, "settings": {"model": "m", "compressor": "c"}, "worth": worth, "failed": 0}
        row |= {"kept_a_second": kept, "seen_a_second": 64, "tokens_a_second": kept + 2, "compress_ms": 0.1}
        made.append(row | {"commit": "c", "versions": "v", "card": "cpu"})
    made[2]["failed"] = failed
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def test_better_is_marked_and_a_tie_is_not(tool, tmp_path):
    grid = tool.Grid(rows(tmp_path / "rows.jsonl"))
    assert grid.verdict("dtd", 0.25) == "better" and grid.verdict("evs", 0.25) == "tie"
    assert grid.beats_all("dtd", 0.25) and not grid.beats_all("evs", 0.25)
    assert "| dtd | **68.8% +** |" in grid.accuracy() and "| evs | 50.0% |" in grid.accuracy()
    assert "better than random: dtd; no telling from random: evs" in grid.words()


def test_a_small_gap_is_a_tie(tool, tmp_path):
    assert tool.Grid(rows(tmp_path / "rows.jsonl", better=2)).verdict("dtd", 0.25) == "tie"


def test_a_failed_run_is_no_score(tool, tmp_path):
    with pytest.raises(SystemExit, match="failed on 3"):
        tool.Grid(rows(tmp_path / "rows.jsonl", failed=3))


def test_the_page_is_up_to_date(tool):
    page = tool.PAGE.read_text(encoding="utf-8")
    assert tool.written(page) == page, "python tools/compressors.py --write"
