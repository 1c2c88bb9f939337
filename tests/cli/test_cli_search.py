"""onlooker search over a folder that a server has written."""

import json
import time

import numpy as np
import pytest

from onlooker.server.database import Database, Record
from onlooker.server.moments import Moment


@pytest.fixture
def kept(tmp_path):
    database = Database(tmp_path)
    now = time.time()
    for age_s, stream, text in (
        (7200, "door", "a red truck came"),
        (60, "yard", "what?\na red fox"),
        (30, "door", "nothing"),
    ):
        facts = {"question": "what?", "text": text}
        database.add(Record("answer", stream, None, text, facts, 12.0, now - age_s, wall=now - age_s))
    database.close()
    return tmp_path


def test_words_are_found_newest_last(run, kept):
    told = run("search", "red", "--state", kept)
    lines = told.out.splitlines()
    assert told.code == 0 and len(lines) == 2
    assert lines[0].endswith("door  answer: a red truck came") and lines[1].endswith("yard  answer: what? | a red fox")
    assert len(run("search", "red", "--state", kept, "--since", "1h").out.splitlines()) == 1
    assert len(run("search", "--state", kept, "--source", "door", "--limit", "1").out.splitlines()) == 1
    assert [one["text"] for one in run("search", "truck", "--state", kept, "--json").json["events"]] == [
        "a red truck came"
    ]


def test_everything_is_exported(run, kept):
    lines = run("search", "--state", kept, "--export", "jsonl").out.splitlines()
    assert [json.loads(line)["stream"] for line in lines] == ["door", "yard", "door"]
    vtt = run("search", "--state", kept, "--export", "vtt", "--source", "door").out
    assert vtt.startswith("WEBVTT") and "a red truck came" in vtt and "fox" not in vtt


def test_moments_are_found_by_meaning(run, kept):
    assert "no moments are kept" in run("search", "truck", "--meaning", "--state", kept).err
    database, now = Database(kept), time.time()
    for number, vector in enumerate(((1, 0), (0, 1), (0.9, 0.1))):
        row = np.array(vector, np.float32)
        database.add(Moment("door", float(number), now - 7200 + number, "own x", row, b"jpeg"))
    database.close()
    told = run("search", "truck", "--meaning", "--state", kept, "--limit", "2", "--json").json["events"]
    assert [one["time_s"] for one in told] == [0.0, 2.0]
    assert "door" in run("search", "truck", "--meaning", "--state", kept).out
    nothing = run("search", "zebra", "--meaning", "--state", kept)
    assert nothing.code == 2 and "know no words" in nothing.err


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--since", "soon"], "a number and a unit"), (["--kind", "x"], "no such kind"),
     (["--export", "vtt"], "one source"),
     (["--export", "csv"], "jsonl"), (["--state", "/nowhere"], "nothing is kept")],
)  # fmt: skip
def test_what_makes_no_sense_is_said(run, kept, words, said):
    told = run("search", *(words if "--state" in words else [*words, "--state", kept]))
    assert told.code == 2 and said in told.err
