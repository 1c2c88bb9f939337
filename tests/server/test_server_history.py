"""What is said and seen is kept, found again by its words, bounded, exported, and safe from a killed process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from running_server import eventually, opened, push, running

from onlooker.core.errors import InputError
from onlooker.respond import Rule
from onlooker.server.database import EVERY_S, Database, Record, Retention, Wanted
from onlooker.server.history import as_vtt
from onlooker.server.settings import Source, StandingQuestion

KEY_A, KEY_B = "a" * 24, "b" * 24
HEART = Rule.from_dict({"name": "heart", "prompt": "say yes when you see a blue heart.", "hold_s": 0})


@pytest.fixture
def database(tmp_path):
    made = Database(tmp_path)
    yield made
    made.close()


def records(database: Database, *texts: str, **more) -> None:
    """Write some answers, and wait for them."""
    before = database.written
    for text in texts:
        database.add(Record("answer", **({"stream": "door", "owner": None, "text": text, "facts": {}} | more)))
    eventually(lambda: database.written == before + len(texts))


def texts(database: Database, **wanted) -> list[str]:
    return [event["text"] for event in database.find(Wanted(**wanted))]


# -------------------------------------------------------------------------------------------------------- the file


def test_words_find_what_was_said(database):
    records(database, "a red truck came", "a blue truck left", "Ein rotes Auto fährt", "nothing")
    assert texts(database, words="truck") == ["a blue truck left", "a red truck came"]
    assert texts(database, words="TRUCK red") == ["a red truck came"]
    assert texts(database, words="tru") == ["a blue truck left", "a red truck came"], "the last word may be cut"
    assert texts(database, words="fahrt") == ["Ein rotes Auto fährt"]
    assert texts(database) == ["nothing", "Ein rotes Auto fährt", "a blue truck left", "a red truck came"]
    assert texts(database, limit=1) == ["nothing"]


@pytest.mark.parametrize(
    "words", ['"', '"" OR *', "NEAR(a b)", "text:red", "a AND", "-red", "^", "'; DROP TABLE events", "*", "()"]
)
def test_words_are_words_and_no_commands(database, words):
    records(database, "a red truck")
    assert texts(database, words=words) in ([], ["a red truck"])
    assert texts(database) == ["a red truck"]


def test_pages_kinds_times_streams_and_owners(database):
    now = time.time()
    records(database, "one", wall=now - 200)
    records(database, "two", wall=now - 100, stream="yard")
    records(database, "three", owner="anna", stream="s1")
    assert texts(database, since=now - 150) == ["two"] and texts(database, until=now - 150) == ["one"]
    assert texts(database, stream="yard") == ["two"] and texts(database, kind="alert") == []
    assert texts(database, owner="anna") == ["three", "two", "one"] and texts(database, owner="bert") == ["two", "one"]
    second = database.find(Wanted(limit=1))[0]["id"]
    assert texts(database, before=second) == ["one"]


def test_what_is_kept_is_bounded_by_age_and_bytes(tmp_path):
    database = Database(tmp_path, Retention(days=1.0, num_bytes=1_000_000))
    records(database, "old", wall=time.time() - 2 * 86400)
    records(database, *[f"number {n} " + "x" * 5000 for n in range(400)], picture=lambda: b"y" * 2000)
    database.tidy()
    assert not texts(database, words="old") and database.num_bytes() <= 1_000_000
    assert texts(database, limit=1)[0].startswith("number 399 "), "the newest stay"
    assert (tmp_path / "onlooker.sqlite").stat().st_size < 2_000_000, "the disk gets its room back"
    pictures = sum(event["has_picture"] for event in database.find(Wanted(limit=1000)))
    assert pictures == len(database.find(Wanted(limit=1000))) > 50
    database.close()


def test_a_killed_process_loses_nothing_that_was_told_to_be_written(tmp_path):
    code = f"""if True:
        import itertools, time
        from pathlib import Path
        from onlooker.server.database import Database, Record
        database = Database(Path({str(tmp_path)!r}))
        for number in itertools.count():
            told = lambda _, number=number: print(number, flush=True)
            database.add(Record("answer", "door", None, f"number {{number}}", {{}}, on_written=told))
            time.sleep(0.002)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        safe = [int(process.stdout.readline()) for _ in range(500)]
        process.send_signal(signal.SIGKILL)
        safe += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    assert safe == list(range(len(safe))), "in their order, and none left out"
    database = Database(tmp_path)
    kept = [event["text"] for event in database.find(Wanted(limit=10**6))][::-1]
    assert kept[: len(safe)] == [f"number {number}" for number in safe]
    records(database, "after")
    database.close()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "onlooker.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(InputError, match="cannot be used"):
        Database(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be used"):
        Database(tmp_path / "file")
    with pytest.raises(InputError, match="nothing is kept"):
        Database(tmp_path / "none", writes=False)


def test_two_processes_may_share_the_file(tmp_path):
    first, second = Database(tmp_path), Database(tmp_path)
    for number in range(50):
        for database in (first, second):
            database.add(Record("answer", "door", None, f"number {number}", {}))
    eventually(lambda: first.written == second.written == 50)
    assert len(first.find(Wanted(limit=1000))) == 100
    first.close(), second.close()


def test_subtitles_are_in_order_and_escaped():
    def answer(wall: float, text: str) -> dict:
        return {"kind": "answer", "wall": wall + 1, "seen_wall": wall, "facts": {"question": "what?", "text": text}}

    alert = {"kind": "alert", "wall": 1000.5, "seen_wall": None, "facts": {"prompt": "a <b> --> c"}}
    vtt = "".join(as_vtt([answer(1000.0, "one"), alert, answer(4605.25, "two")]))
    assert vtt.startswith("WEBVTT\n\nNOTE begins at 1970-01-01T00:16:40.000+00:00\n")
    assert "\n00:00:00.000 --> 00:00:00.500\nwhat? one\n" in vtt
    assert "\n00:00:00.500 --> 00:00:04.500\nAlert: a &lt;b&gt; --&gt; c\n" in vtt
    assert vtt.endswith("\n01:00:05.250 --> 01:00:09.250\nwhat? two\n")


# ------------------------------------------------------------------------------------------------ a running server


def test_a_source_is_kept_and_found_also_after_a_restart(pocket, tmp_path):
    question = StandingQuestion("count", "how many shapes are visible now?", every_s=1.0)
    always = Rule.from_dict(
        {"name": "always", "prompt": "is there anything?", "threshold": 0.001, "clear": 0.0, "hold_s": 0}
    )
    source = Source("demo", "synthetic:1", rules=(always,), questions=(question,), lag_s=1e-9)
    began = time.time()
    with running(pocket, sources=(source,), source_fps=2.0, state=tmp_path) as server, server.client() as client:
        kinds = lambda: {one["kind"] for one in client.get("/v1/search").json()["events"]}  # noqa: E731
        eventually(lambda: kinds() == {"answer", "alert", "source", "rules"})
        (alert, *_) = client.get("/v1/search", params={"kind": "alert", "q": "anything"}).json()["events"]
        assert alert["stream"] == "demo" and began - 5 < alert["seen_wall"] < time.time()
        assert abs(alert["wall"] - alert["seen_wall"]) < 60 and alert["facts"]["wall"] == alert["seen_wall"]
        picture = client.get(alert["picture"])
        assert picture.status_code == 200 and picture.content.startswith(b"\xff\xd8")
        assert client.get("/v1/search/999999.jpg").status_code == 404
        said = client.post("/v1/streaming/sessions/demo/ask", json={"question": "which shape came first?"}).json()
        eventually(lambda: client.get("/v1/search", params={"q": "came first"}).json()["events"])
        metrics = client.get("/metrics").text
        assert 'onlooker_source_up{source="demo"} 1.0' in metrics
        assert 'onlooker_history_events_total{result="dropped"} 0.0' in metrics
        assert 'onlooker_source_frames_late_total{source="demo"} 0.0' not in metrics
    with running(pocket, state=tmp_path) as server, server.client() as client:
        (found,) = client.get("/v1/search", params={"q": "which shape came"}).json()["events"]
        assert found["facts"]["text"] == said["text"] and found["time_s"] == said["time_s"]
        lines = client.get("/v1/export", params={"stream": "demo"}).text.splitlines()
        assert [json.loads(line)["id"] for line in lines] == sorted(json.loads(line)["id"] for line in lines)
        vtt = client.get("/v1/export", params={"stream": "demo", "format": "vtt"})
        assert vtt.text.startswith("WEBVTT") and "which shape came first?" in vtt.text
        assert client.get("/v1/export", params={"format": "vtt"}).status_code == 422
        page = client.get("/v1/search", params={"limit": 2}).json()
        older = client.get("/v1/search", params={"limit": 2, "before": page["next"]}).json()
        assert page["events"][-1]["id"] > older["events"][0]["id"]


def test_sessions_of_clients_are_kept_only_if_asked_for_and_for_their_key(pocket, jpegs, tmp_path):
    for keeps in (False, True):
        folder = tmp_path / str(keeps)
        with (
            running(pocket, keys=(KEY_A, KEY_B), state=folder, keep_sessions=keeps) as server,
            server.client(KEY_A) as anna,
            server.client(KEY_B) as bert,
        ):
            path = opened(anna)
            push(anna, path, jpegs[:2])
            anna.post(f"{path}/ask", json={"question": "what is there now?"})
            anna.delete(path)
            if keeps:
                eventually(lambda: anna.get("/v1/search", params={"kind": "answer"}).json()["events"])
            else:
                time.sleep(3 * EVERY_S)
                assert anna.get("/v1/search").json()["events"] == []
            assert bert.get("/v1/search").json()["events"] == []


def test_a_server_without_state_says_so(shared):
    with shared.client() as client:
        for path in ("/v1/search", "/v1/search/1.jpg", "/v1/export"):
            reply = client.get(path)
            assert reply.status_code == 404 and reply.json()["error"]["code"] == "history_off"
        assert client.get("/v1/search", params={"limit": 0}).status_code == 422


def test_events_tell_the_time_of_day(client, session, jpegs):
    began = time.time()
    client.post(
        f"{session}/frame?wait=true&pts=5&wall=1000.5", content=jpegs[0], headers={"content-type": "image/jpeg"}
    )
    reply = client.post(f"{session}/ask", json={"question": "what is there now?"}).json()
    assert reply["wall"] == 1000.5, "the frame's own time of day"
    client.post(f"{session}/frame?wait=true&pts=6", content=jpegs[1], headers={"content-type": "image/jpeg"})
    reply = client.post(f"{session}/ask", json={"question": "what is there now?"}).json()
    assert began - 1 <= reply["wall"] <= time.time(), "else when it came"
