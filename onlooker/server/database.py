"""What was said and seen, kept on disk: answers, alerts with their pictures, sources up and down, changed rules.

SQLite in WAL mode, or PostgreSQL, through SQLAlchemy. One thread writes, in batches; readers never wait for it, and
several worker processes may share it. What is written is safe from a killed process; what waits (`EVERY_S`) is not.
"""

import json
import logging
import operator
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from onlooker.core.errors import InputError
from onlooker.server.dialects import Dialect, Sqlite, dialect_of
from onlooker.server.tables import CLIPS, EVENTS, MOMENTS, PICTURES
from onlooker.video.clip import Clip

LOG = logging.getLogger("onlooker.server")
EVERY_S = 0.5
"""Seconds after which what waits is written."""
WAITING = 4096
"""Most events that wait for the disk; further ones are dropped and counted."""
KINDS = ("answer", "alert", "source", "rules", "note", "quality")


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


class Kept(Protocol):
    """Something to keep."""

    def write(self, connection: sql.Connection, dialect: Dialect) -> Callable[[], None] | None:
        """Write it, on the database's thread; what is to be done when it is written."""
        ...


@dataclass(frozen=True)
class Record:
    """Something that happened."""

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

    def write(self, connection: sql.Connection, dialect: Dialect) -> Callable[[], None] | None:
        names = ("wall", "seen_wall", "time_s", "stream", "owner", "kind")
        text = self.text.replace("\0", " ")  # which no text of PostgreSQL may hold
        row = {name: getattr(self, name) for name in names} | {"text": text, "facts": json.dumps(dict(self.facts))}
        made = connection.execute(EVENTS.insert().values(row))
        assert made.inserted_primary_key is not None, "an event gets a number"
        number, told = made.inserted_primary_key[0], self.on_written
        dialect.index(connection, number, text)
        if self.picture is not None:
            connection.execute(PICTURES.insert().values(event=number, jpeg=self.picture()))
        return None if told is None else lambda: told(number)


@dataclass(frozen=True)
class Attached:
    """A video that belongs to an event."""

    event: int
    clip: Clip

    def write(self, connection: sql.Connection, dialect: Dialect) -> Callable[[], None] | None:
        if connection.execute(sql.select(EVENTS.c.id).where(EVENTS.c.id == self.event)).first():  # it may be gone
            clip = {"media_type": self.clip.media_type, "data": self.clip.data}
            connection.execute(CLIPS.insert().values(event=self.event, **clip))
        return None


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
    """The database of a folder, or at an address. `add` may be called from any thread and never waits; `close` writes
    what waits.

    Raises `InputError` when it cannot be used or is none of ours.
    """

    def __init__(
        self, folder: Path | None, retention: Retention | None = None, *, url: str | None = None, writes: bool = True
    ) -> None:
        self.retention = retention or Retention()
        self.written = self.dropped = 0
        self._waiting: queue.Queue[Kept | None] = queue.Queue(WAITING)
        self._dialect = dialect_of(folder, url)
        self.engine = self._dialect.engine
        self._open(folder, writes)
        self._thread = threading.Thread(target=self._run, name="onlooker-database", daemon=True)
        if writes:
            self._thread.start()

    def _open(self, folder: Path | None, writes: bool) -> None:
        dialect = self._dialect
        if isinstance(dialect, Sqlite) and not writes and not dialect.exists():
            raise InputError(
                "nothing is kept in this folder", given=str(folder), do="give what serve --state was given"
            )
        try:
            if folder is not None and writes:
                folder.mkdir(parents=True, exist_ok=True)
            with dialect.engine.begin() as connection:
                dialect.prepare(connection, writes=writes)
        except (SQLAlchemyError, OSError) as error:
            why = str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error)
            raise InputError(
                "the database cannot be used", given=f"{dialect.place}: {why}", do="choose another"
            ) from error

    # --------------------------------------------------------------------------------------------------------- writing

    def add(self, record: Kept) -> None:
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
        self.engine.dispose()

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

    def _batch(self) -> tuple[list[Kept], bool]:
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

    def _write(self, batch: list[Kept]) -> None:
        written: list[Callable[[], None]] = []

        def write() -> None:
            with self.engine.begin() as connection:
                written.extend(filter(None, [record.write(connection, self._dialect) for record in batch]))

        if self._try(write):
            self.written += len(batch)
            for told in written:
                told()
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
        oldest_wall = time.time() - 86400 * self.retention.days
        with self.engine.begin() as connection:
            for table in (EVENTS, MOMENTS):
                connection.execute(table.delete().where(table.c.wall < oldest_wall))
        while self.num_bytes() > self.retention.num_bytes:
            if not sum(map(self._let_go, (EVENTS, MOMENTS))):
                break
        self._dialect.give_back()

    def _let_go(self, table: sql.Table) -> int:
        """Delete the oldest tenth of a table; how many that was."""
        with self.engine.begin() as connection:
            count = connection.execute(sql.select(sql.func.count()).select_from(table)).scalar_one()
            oldest = sql.select(table.c.id).order_by(table.c.id).limit(max(1, count // 10))
            return connection.execute(table.delete().where(table.c.id.in_(oldest))).rowcount

    def num_bytes(self) -> int:
        """Bytes in use."""
        return self._dialect.num_bytes()

    # --------------------------------------------------------------------------------------------------------- reading

    def find(self, wanted: Wanted) -> list[dict[str, Any]]:
        """Events, newest first: number, times, stream, kind, text, facts, and whether there is a picture."""
        query = _query(wanted, self._dialect).order_by(EVENTS.c.id.desc()).limit(wanted.limit)
        with self.engine.connect() as connection:
            return [_told(row) for row in connection.execute(query)]

    def all(self, wanted: Wanted) -> Iterator[dict[str, Any]]:
        """Every event that is wanted, oldest first, read bit by bit (`limit` and `before` do not count)."""
        after = 0
        while True:
            query = _query(wanted, self._dialect).where(EVENTS.c.id > after).order_by(EVENTS.c.id).limit(500)
            with self.engine.connect() as connection:
                rows = connection.execute(query).all()
            yield from map(_told, rows)
            if not rows:
                return
            after = rows[-1].id

    def picture(self, number: int, owner: str | None) -> bytes | None:
        """The picture of an event that this caller may see; None if there is none."""
        query = sql.select(PICTURES.c.jpeg).join(EVENTS, EVENTS.c.id == PICTURES.c.event)
        query = query.where(PICTURES.c.event == number, _seen_by(owner))
        with self.engine.connect() as connection:
            return connection.execute(query).scalar()

    def clip(self, number: int, owner: str | None) -> Clip | None:
        """The video of an event that this caller may see; None if there is none."""
        query = sql.select(CLIPS.c.data, CLIPS.c.media_type).join(EVENTS, EVENTS.c.id == CLIPS.c.event)
        query = query.where(CLIPS.c.event == number, _seen_by(owner))
        with self.engine.connect() as connection:
            row = connection.execute(query).first()
        return None if row is None else Clip(row.data, row.media_type)


def _seen_by(owner: str | None) -> sql.ColumnElement[bool]:
    return sql.or_(EVENTS.c.owner.is_(None), EVENTS.c.owner == owner)


def _query(wanted: Wanted, dialect: Dialect) -> sql.Select[Any]:
    has_picture = sql.exists().where(PICTURES.c.event == EVENTS.c.id).label("has_picture")
    has_clip = sql.exists().where(CLIPS.c.event == EVENTS.c.id).label("has_clip")
    query = sql.select(EVENTS, has_picture, has_clip).where(_seen_by(wanted.owner))
    if words := wanted.words.split():
        query = query.where(dialect.has_words(words))
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
