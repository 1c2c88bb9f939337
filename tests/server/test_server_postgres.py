"""The same database on a real PostgreSQL."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ports import free_port
from running_server import eventually, running

from onlooker.core.errors import InputError
from onlooker.server.config import Faulty, read_config
from onlooker.server.database import Attached, Database, Record, Retention, Wanted
from onlooker.server.moments import Moment, Moments
from onlooker.server.settings import Source, StandingQuestion
from onlooker.video.clip import Clip


def program(name: str) -> str | None:
    """Where Debian's packages put it, the newest version first."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    return str(found[-1]) if found else shutil.which(name)


with_postgres = pytest.mark.skipif(program("initdb") is None, reason="postgresql is not installed")


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL of this machine alone, which ends with the tests."""
    import pwd

    folder = tmp_path_factory.mktemp("postgres")
    # It refuses to run as root.
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
    who = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid}
    if user is not None:
        for path in (folder, *folder.parents):
            if path == Path("/tmp"):
                break
            path.chmod(0o755)
        os.chown(folder, user.pw_uid, user.pw_gid)
    port = free_port()
    data = str(folder / "data")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": str(folder)}
    words = [str(program("initdb")), "-D", data, "-U", "eye", "--auth", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(words, check=True, **who, **quiet)
    words = [str(program("postgres")), "-D", data, "-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-F"]
    process = subprocess.Popen(words, **who, **quiet)
    try:
        eventually(
            lambda: (
                subprocess.run([str(program("pg_isready")), "-p", str(port), "-h", "127.0.0.1"], **quiet).returncode
                == 0
            )
        )
        yield f"postgresql://eye:secret@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def database(postgres) -> Iterator[Database]:
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        for table in ("clips", "pictures", "moments", "events", "onlooker_version"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")  # pyright: ignore[reportArgumentType]
    made = Database(None, url=postgres)
    yield made
    made.close()


def records(database: Database, *texts: str, **more) -> None:
    before = database.written
    for text in texts:
        database.add(Record("answer", **({"stream": "door", "owner": None, "text": text, "facts": {}} | more)))
    eventually(lambda: database.written == before + len(texts))


def texts(database: Database, **wanted) -> list[str]:
    return [event["text"] for event in database.find(Wanted(**wanted))]


def test_an_address_that_is_none_is_said_without_its_password():
    with pytest.raises(InputError, match="not the address of a database"):
        Database(None, url="nonsense")
    with pytest.raises(InputError, match="cannot be used") as refused:
        Database(None, url="postgresql://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(refused.value)
    with pytest.raises(Faulty, match="database: give one of url"):
        read_config(None, text="[database]\n")
    settings = read_config(None, text='[database]\nurl = "postgresql://me:secret@h/x"\n').server_settings()
    assert settings.database == "postgresql://me:secret@h/x" and "secret" not in repr(settings)


@pytest.mark.live
@with_postgres
def test_words_find_what_was_said(database):
    records(database, "a red truck came", "a blue truck left", "Ein rotes Auto fährt", "nothing", "a\0b")
    assert texts(database, words="truck") == ["a blue truck left", "a red truck came"]
    assert texts(database, words="TRUCK red") == ["a red truck came"]
    assert texts(database, words="tru") == ["a blue truck left", "a red truck came"], "the last word may be cut"
    assert texts(database, words="fahrt") == ["Ein rotes Auto fährt"] == texts(database, words="auto fährt")
    assert texts(database, limit=1) == ["a b"]
    for words in ('"', "NEAR(a b)", "a & | !", "-red", "'; DROP TABLE events", "*", "()", "red:*", "\\", "''"):
        assert set(texts(database, words=words)) <= {"a red truck came", "nothing", "a b"}
    assert len(texts(database)) == 5


@pytest.mark.live
@with_postgres
def test_pages_owners_pictures_clips_and_retention(database, postgres):
    now, numbers = time.time(), []
    records(database, "old", wall=now - 40 * 86400)
    records(database, "one", wall=now - 200, picture=lambda: b"jpeg", on_written=numbers.append)
    records(database, "three", owner="anna", stream="s1", wall=now)
    database.add(Attached(numbers[0], Clip(b"video", "video/mp4")))
    eventually(lambda: database.clip(numbers[0], None))
    assert database.picture(numbers[0], None) == b"jpeg" and database.clip(numbers[0], None).data == b"video"
    assert texts(database, owner="anna")[:2] == ["three", "one"] and "three" not in texts(database, owner="bert")
    assert texts(database, since=now - 250, until=now - 100) == ["one"]
    database.tidy()
    assert "old" not in texts(database)
    records(database, *[f"number {n} " + "x" * 5000 for n in range(100)])
    database.retention = Retention(num_bytes=200_000)
    database.tidy()
    assert database.num_bytes() <= 200_000 and texts(database, limit=1)[0].startswith("number 99 ")
    reader = Database(None, url=postgres, writes=False)
    assert len(reader.find(Wanted(limit=500))) == len(database.find(Wanted(limit=500)))
    assert len(list(reader.all(Wanted()))) == len(database.find(Wanted(limit=500)))
    reader.close()


@pytest.mark.live
@with_postgres
def test_moments_are_kept_there_too(database):
    moments, now = Moments(database), time.time()
    for number, vector in enumerate(((1, 0), (0, 1), (1, 0.2))):
        row = np.asarray(vector, np.float32)
        database.add(Moment("door", float(number), now + number, "own x", row, b"j" * 1000))
    eventually(lambda: database.written == 3)
    records(database, "a red truck", seen_wall=now)
    seeds = moments.said(Wanted("truck"), "own x")
    assert [one["time_s"] for one in moments.find(Wanted(limit=2), "own x", None, seeds)] == [0.0, 2.0]
    database.retention = Retention(num_bytes=4000)
    moments.tidy(0.5)
    assert moments.picture(1) is None and moments.picture(3) == b"j" * 1000


@pytest.mark.live
@with_postgres
def test_two_servers_keep_in_one_database(database, pocket, postgres):
    question = StandingQuestion("count", "how many shapes are visible now?", every_s=1.0)
    sources = {name: (Source(name, "synthetic:1", questions=(question,)),) for name in ("here", "there")}
    with (
        running(pocket, sources=sources["here"], source_fps=2.0, database=postgres) as one,
        running(pocket, sources=sources["there"], source_fps=2.0, database=postgres) as other,
        one.client() as client,
        other.client() as another,
    ):
        found = lambda which: {e["stream"] for e in which.get("/v1/search", params={"q": "shapes"}).json()["events"]}  # noqa: E731
        eventually(lambda: found(client) == found(another) == {"here", "there"})
        assert 'onlooker_history_events_total{result="dropped"} 0.0' in client.get("/metrics").text
