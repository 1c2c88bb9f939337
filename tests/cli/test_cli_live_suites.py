"""onlooker eval proactive, narration, hours: rows as they come, tables, and errors that say what to do."""

import json

import pytest

CLIP = ("--model", "pocket-naive", "--device", "cpu", "--json")


@pytest.mark.slow
def test_narration_writes_rows_and_a_table(run, tmp_path) -> None:
    out = tmp_path / "rows.jsonl"
    given = ("eval", "narration", *CLIP, "--limit", 1, "--seconds", 60, "--response", "oracle when", "--out", out)
    ran = run(*given)
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out.splitlines()[-1])["rows"]
    assert [row["narrator"] for row in rows] == ["oracle when", "never", "oracle"] and rows[-1]["told"] == 1.0
    assert json.loads(out.read_text())["narrator"] == "oracle when"
    again = run(*given)
    assert again.code == 2 and "never overwritten" in again.err


@pytest.mark.slow
def test_hours_tell_every_minute(run, tmp_path) -> None:
    out = tmp_path / "rows.jsonl"
    ran = run("eval", "hours", *CLIP, "--seconds", 120, "--response", "clock:period_s=30", "--out", out)
    assert ran.code == 0, ran.err
    minutes = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["minute"] for row in minutes] == [0, 1] and all(row["bytes"] > 0 for row in minutes)
    assert json.loads(ran.out.splitlines()[-1])["rows"][0]["events"] >= 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["proactive", "--encoder", "full"], "methods of its own"),
        (["narration", "--response", "nobody"], "no such narrator"),
        (["pocketworld", "--response", "clock"], "no policies, lengths or prompts"),
        (["hours", "--response", "clock", "--response", "sved"], "told by one policy"),
    ],
)
def test_what_a_suite_cannot_do_is_said(run, arguments, words) -> None:
    ran = run("eval", *arguments)
    assert ran.code == 2 and words in ran.err and "Traceback" not in ran.err
