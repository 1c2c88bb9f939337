"""What was said and seen, kept on disk: answers, alerts with their pictures, sources up and down, changed rules.

SQLite in WAL mode through SQLAlchemy. One thread writes, in batches; readers never wait for it, and several worker
processes may share the file. What is written is safe from a killed process; what waits (`EVERY_S`) is not.
"""

import contextlib
import json
import logging
import operator
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.event import listen
from sqlalchemy.exc import SQLAlchemyError

from onlooker.core.errors import InputError
from onlooker.video.clip import Clip

LOG = logging.getLogger("onlooker.server")
FILE = "onlooker.sqlite"
VERSION = 2
EVERY_S = 0.5
"""Seconds after which what waits is written."""
WAITING = 4096
"""Most events that wait for the disk; further ones are dropped and counted."""
KINDS = ("answer", "alert", "source", "rules", "note", "quality")

_TABLES = sql.MetaData()
EVENTS = sql.Table(
    "events",
    _TABLES,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("wall", sql.Float, nullable=False, index=True),
    sql.Column("seen_wall", sql.Float),
    sql.Column("time_s", sql.Float),
    sql.Column("stream", sql.Text, nullable=False, index=True),
    sql.Column("owner", sql.Text),
    sql.Column("kind", sql.Text, nullable=False),
    sql.Column("text", sql.Text, nullable=False),
    sql.Column("facts", sql.Text, nullable=False),
    sqlite_autoincrement=True,  # a number is never used twice, so that a reader can go on from one
)
PICTURES = sql.Table(
    "pictures",
    _TABLES,
    sql.Column("event", sql.Integer, sql.ForeignKey("events.id", ondelete="CASCADE"), primary_key=True),
    sql.Column("jpeg", sql.LargeBinary, nullable=False),
)
CLIPS = sql.Table(
    "clips",
    _TABLES,
    sql.Column("event", sql.Integer, sql.ForeignKey("events.id", ondelete="CASCADE"), primary_key=True),
    sql.Column("media_type", sql.Text, nullable=False),
    sql.Column("data", sql.LargeBinary, nullable=False),
)
_WORDS = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(text, content='events', content_rowid='id', "
    "tokenize='unicode61 remove_diacritics 2')",
    "CREATE TRIGGER IF NOT EXISTS words_in AFTER INSERT ON events BEGIN "
    "INSERT INTO words(rowid, text) VALUES (new.id, new.text); END",
    "CREATE TRIGGER IF NOT EXISTS words_out AFTER DELETE ON events BEGIN "
    "INSERT INTO words(words, rowid, text) VALUES ('delete', old.id, old.text); END",
)


@dataclass(frozen=True)
class Retention:
    """How much is kept. Raises `InputError` for values out of range."""

    days: float = 30.0
    """Older events go."""
    num_bytes: int = 2 * 2**30
    """Beyond so many bytes on disk the oldest events go, with their pictures."""
    clip_s: float = 8.0
    """Seconds of video before what an alert saw that are kept with it, and a little after; 0 for none."""
    memory_every_s: float = 30.0
    """Seconds after which what a source remembers is written anew: what a killed server has forgotten at most."""
    memory_bytes: int = 2**30
    """A source that remembers more is not written."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_s <= 300:
            raise InputError("a clip begins 0 to 300 seconds before what an alert saw", given=str(self.clip_s))
        if not all(value > 0 for value in (self.days, self.num_bytes, self.memory_every_s, self.memory_bytes)):
            raise InputError("what is kept has an age and bytes above 0", given=str(self))


@dataclass(frozen=True)
class Record:
    """Something to keep."""

    kind: str
    stream: str
    owner: str | None
    """Whose session it was; None for a source of the server."""
    text: str
    """What can be searched for."""
    facts: Mapping[str, Any]
    time_s: float | None = None
    """Stream time it is about, in seconds."""
    seen_wall: float | None = None
    """Time of day of that moment, seconds since the epoch."""
    picture: Callable[[], bytes] | None = None
    """Makes a JPEG of it, on the database's thread."""
    wall: float = field(default_factory=time.time)
    """When it happened, seconds since the epoch."""
    on_written: Callable[[int], None] | None = None
    """Told the number that it was given, on the database's thread."""


@dataclass(frozen=True)
class Attached:
    """A video that belongs to an event."""

    event: int
    clip: Clip


@dataclass(frozen=True)
class Wanted:
    """Which events are looked for; what is None does not matter."""

    words: str = ""
    stream: str | None = None
    kind: str | None = None
    since: float | None = None
    """Happened at this time of day or later, seconds since the epoch."""
    until: float | None = None
    before: int | None = None
    """Number of an event: older ones only."""
    owner: str | None = None
    """Events of this caller's sessions besides those of the sources."""
    limit: int = 50


class Database:
    """The file in a folder. `add` may be called from any thread and never waits; `close` writes what waits.

    Raises `InputError` when the folder cannot be used or its file is none of ours.
    """

    def __init__(self, folder: Path, retention: Retention | None = None, *, writes: bool = True) -> None:
        self.retention = retention or Retention()
        self.written = self.dropped = 0
        self._path = folder / FILE
        self._waiting: queue.Queue[Record | Attached | None] = queue.Queue(WAITING)
        self._engine = self._open(folder, writes)
        self._thread = threading.Thread(target=self._run, name="onlooker-database", daemon=True)
        if writes:
            self._thread.start()

    def _open(self, folder: Path, writes: bool) -> sql.Engine:
        if not writes and not self._path.exists():
            raise InputError(
                "nothing is kept in this folder", given=str(folder), do="give what serve --state was given"
            )
        engine = sql.create_engine(f"sqlite:///{self._path}", connect_args={"timeout": 20.0})
        listen(engine, "connect", _prepare)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with engine.begin() as connection:
                version = connection.execute(sql.text("PRAGMA user_version")).scalar_one()
                if version > VERSION:
                    raise InputError("the database was written by a newer version", given=str(self._path))
                if version < VERSION:  # what an older version made stays as it is, and gets what is new
                    _TABLES.create_all(connection)
                    for statement in _WORDS:
                        connection.execute(sql.text(statement))
                    connection.execute(sql.text(f"PRAGMA user_version = {VERSION}"))
        except (SQLAlchemyError, OSError) as error:
            why = str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error)
            raise InputError(
                "the database cannot be used", given=f"{self._path}: {why}", do="choose another folder"
            ) from error
        self._path.chmod(0o600)
        return engine

    # --------------------------------------------------------------------------------------------------------- writing

    def add(self, record: Record | Attached) -> None:
        """Keep something; dropped and counted when the disk does not keep up."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits, and end."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join(20.0)
        self._engine.dispose()

    def _run(self) -> None:
        tidied = 0.0
        while True:
            batch, ends = self._batch()
            if batch:
                self._write(batch)
            if time.monotonic() - tidied > 60.0:
                tidied = time.monotonic()
                self._try(self.tidy)
            if ends:
                return

    def _batch(self) -> tuple[list[Record | Attached], bool]:
        """What came within `EVERY_S`, and whether nothing follows."""
        until, batch = time.monotonic() + EVERY_S, []
        while (left := until - time.monotonic()) > 0 and len(batch) < 512:
            try:
                record = self._waiting.get(timeout=left)
            except queue.Empty:
                break
            if record is None:
                return batch, True
            batch.append(record)
        return batch, False

    def _write(self, batch: list[Record | Attached]) -> None:
        written: list[tuple[Callable[[int], None], int]] = []

        def write() -> None:
            with self._engine.begin() as connection:
                for record in batch:
                    if isinstance(record, Attached):
                        clip = {"media_type": record.clip.media_type, "data": record.clip.data}
                        whose = sql.select(EVENTS.c.id).where(EVENTS.c.id == record.event)
                        if connection.execute(whose).first():  # it may be gone already
                            connection.execute(CLIPS.insert().values(event=record.event, **clip))
                        continue
                    row = {
                        name: getattr(record, name)
                        for name in ("wall", "seen_wall", "time_s", "stream", "owner", "kind", "text")
                    }
                    made = connection.execute(EVENTS.insert().values(row | {"facts": json.dumps(dict(record.facts))}))
                    assert made.inserted_primary_key is not None, "an event gets a number"
                    number = made.inserted_primary_key[0]
                    if record.picture is not None:
                        connection.execute(PICTURES.insert().values(event=number, jpeg=record.picture()))
                    if record.on_written is not None:
                        written.append((record.on_written, number))

        if self._try(write):
            self.written += len(batch)
            for told, number in written:
                told(number)
        else:
            self.dropped += len(batch)

    def _try(self, work: Any) -> bool:
        try:
            work()
        except SQLAlchemyError as error:
            LOG.error("the database cannot be written: %s", getattr(error, "orig", None) or error)
            return False
        return True

    def tidy(self) -> None:
        """Let go of what is too old, and of the oldest while there are too many bytes."""
        with self._engine.begin() as connection:
            connection.execute(EVENTS.delete().where(EVENTS.c.wall < time.time() - 86400 * self.retention.days))
        while self.num_bytes() > self.retention.num_bytes:
            with self._engine.begin() as connection:
                count = connection.execute(sql.select(sql.func.count()).select_from(EVENTS)).scalar_one()
                oldest = sql.select(EVENTS.c.id).order_by(EVENTS.c.id).limit(max(1, count // 10))
                if not connection.execute(EVENTS.delete().where(EVENTS.c.id.in_(oldest))).rowcount:
                    break
        with contextlib.closing(self._engine.raw_connection()) as connection:
            cursor: Any = connection.cursor()
            # As a script, which is run to its end: `execute` stops after the first page that is given back.
            cursor.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")

    def num_bytes(self) -> int:
        """Bytes in use in the file."""
        with self._engine.connect() as connection:
            pages, free, size = (
                connection.execute(sql.text(f"PRAGMA {name}")).scalar_one()
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * size

    # --------------------------------------------------------------------------------------------------------- reading

    def find(self, wanted: Wanted) -> list[dict[str, Any]]:
        """Events, newest first: number, times, stream, kind, text, facts, and whether there is a picture."""
        query = _query(wanted).order_by(EVENTS.c.id.desc()).limit(wanted.limit)
        with self._engine.connect() as connection:
            return [_told(row) for row in connection.execute(query)]

    def all(self, wanted: Wanted) -> Iterator[dict[str, Any]]:
        """Every event that is wanted, oldest first, read bit by bit (`limit` and `before` do not count)."""
        after = 0
        while True:
            query = _query(wanted).where(EVENTS.c.id > after).order_by(EVENTS.c.id).limit(500)
            with self._engine.connect() as connection:
                rows = connection.execute(query).all()
            yield from map(_told, rows)
            if not rows:
                return
            after = rows[-1].id

    def picture(self, number: int, owner: str | None) -> bytes | None:
        """The picture of an event that this caller may see; None if there is none."""
        query = sql.select(PICTURES.c.jpeg).join(EVENTS, EVENTS.c.id == PICTURES.c.event)
        query = query.where(PICTURES.c.event == number, _seen_by(owner))
        with self._engine.connect() as connection:
            return connection.execute(query).scalar()

    def clip(self, number: int, owner: str | None) -> Clip | None:
        """The video of an event that this caller may see; None if there is none."""
        query = sql.select(CLIPS.c.data, CLIPS.c.media_type).join(EVENTS, EVENTS.c.id == CLIPS.c.event)
        query = query.where(CLIPS.c.event == number, _seen_by(owner))
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else Clip(row.data, row.media_type)


def _prepare(connection: Any, _: Any) -> None:
    for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _seen_by(owner: str | None) -> sql.ColumnElement[bool]:
    return sql.or_(EVENTS.c.owner.is_(None), EVENTS.c.owner == owner)


def _query(wanted: Wanted) -> sql.Select[Any]:
    has_picture = sql.exists().where(PICTURES.c.event == EVENTS.c.id).label("has_picture")
    has_clip = sql.exists().where(CLIPS.c.event == EVENTS.c.id).label("has_clip")
    query = sql.select(EVENTS, has_picture, has_clip).where(_seen_by(wanted.owner))
    if words := wanted.words.split():
        # Each word as it stands, never as an operator of the search's own language; the last may be a beginning.
        phrase = " ".join('"' + word.replace('"', '""') + '"' for word in words) + "*"
        found = sql.text("SELECT rowid FROM words WHERE words MATCH :phrase").bindparams(phrase=phrase)
        query = query.where(EVENTS.c.id.in_(found.columns(sql.column("rowid", sql.Integer))))
    for value, column, compare in (
        (wanted.stream, EVENTS.c.stream, operator.eq),
        (wanted.kind, EVENTS.c.kind, operator.eq),
        (wanted.since, EVENTS.c.wall, operator.ge),
        (wanted.until, EVENTS.c.wall, operator.lt),
        (wanted.before, EVENTS.c.id, operator.lt),
    ):
        if value is not None:
            query = query.where(compare(column, value))
    return query


def _told(row: Any) -> dict[str, Any]:
    told_of = {name: getattr(row, name) for name in ("id", "wall", "seen_wall", "time_s", "stream", "kind", "text")}
    has = {"has_picture": bool(row.has_picture), "has_clip": bool(row.has_clip)}
    return told_of | {"facts": json.loads(row.facts)} | has
