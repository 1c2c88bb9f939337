"""What differs between the databases a server may keep things in: SQLite (embedded) and PostgreSQL (by address)."""

import contextlib
import unicodedata
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sql
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.event import listen
from sqlalchemy.exc import ArgumentError

from onlooker.core.errors import InputError
from onlooker.server.tables import CLIPS, EVENTS, MOMENTS, PICTURES, TABLES

FILE = "onlooker.sqlite"
VERSION = 3


class Dialect(Protocol):
    """One kind of database, at one place."""

    place: str
    """Where it is, for people; without a password."""
    engine: sql.Engine

    def prepare(self, connection: sql.Connection, *, writes: bool) -> None:
        """Make what is not there yet. Raises `InputError` for what a newer version wrote, or where nothing is."""
        ...

    def index(self, connection: sql.Connection, number: int, text: str) -> None:
        """Have an event found by the words of its text."""
        ...

    def has_words(self, words: list[str]) -> sql.ColumnElement[bool]:
        """Whether all words are in an event's text, the last of them perhaps cut."""
        ...

    def num_bytes(self) -> int:
        """Bytes in use."""
        ...

    def give_back(self) -> None:
        """Let the disk have what was deleted."""
        ...


class Sqlite:
    """A file in a folder, in WAL mode: several processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self.place = str(self._path)
        self.engine = sql.create_engine(f"sqlite:///{self._path}", connect_args={"timeout": 20.0})
        listen(self.engine, "connect", _set_up)

    def exists(self) -> bool:
        """Whether there is such a file."""
        return self._path.exists()

    def prepare(self, connection: sql.Connection, *, writes: bool) -> None:
        version = connection.execute(sql.text("PRAGMA user_version")).scalar_one()
        if version > VERSION:
            raise InputError("the database was written by a newer version", given=self.place)
        if version < VERSION:  # what an older version made stays as it is, and gets what is new
            TABLES.create_all(connection)
            for statement in _FTS5:
                connection.execute(sql.text(statement))
            connection.execute(sql.text(f"PRAGMA user_version = {VERSION}"))
        self._path.chmod(0o600)

    def index(self, connection: sql.Connection, number: int, text: str) -> None:
        pass  # triggers do

    def has_words(self, words: list[str]) -> sql.ColumnElement[bool]:
        # Each word as it stands, never as an operator of the search's own language.
        phrase = " ".join('"' + word.replace('"', '""') + '"' for word in words) + "*"
        found = sql.text("SELECT rowid FROM words WHERE words MATCH :phrase").bindparams(phrase=phrase)
        return EVENTS.c.id.in_(found.columns(sql.column("rowid", sql.Integer)))

    def num_bytes(self) -> int:
        with self.engine.connect() as connection:
            pages, free, size = (
                connection.execute(sql.text(f"PRAGMA {name}")).scalar_one()
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * size

    def give_back(self) -> None:
        with contextlib.closing(self.engine.raw_connection()) as connection:
            cursor: Any = connection.cursor()
            # As a script, which is run to its end: `execute` stops after the first page that is given back.
            cursor.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")


_FTS5 = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(text, content='events', content_rowid='id', "
    "tokenize='unicode61 remove_diacritics 2')",
    "CREATE TRIGGER IF NOT EXISTS words_in AFTER INSERT ON events BEGIN "
    "INSERT INTO words(rowid, text) VALUES (new.id, new.text); END",
    "CREATE TRIGGER IF NOT EXISTS words_out AFTER DELETE ON events BEGIN "
    "INSERT INTO words(words, rowid, text) VALUES ('delete', old.id, old.text); END",
)


def _set_up(connection: Any, _: Any) -> None:
    for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


class Postgres:
    """A PostgreSQL server, which machines may share; with psycopg (extra `postgres`)."""

    def __init__(self, url: str) -> None:
        try:
            address = sql.make_url(url).set(drivername="postgresql+psycopg")
            self.engine = sql.create_engine(address, pool_pre_ping=True, connect_args={"connect_timeout": 10})
        except ModuleNotFoundError as error:
            raise InputError(
                "PostgreSQL needs the package psycopg", given=str(error.name), do="pip install 'onlooker[postgres]'"
            ) from error
        except ArgumentError:
            raise InputError("this is not the address of a database", do="postgresql://NAME@HOST/DATABASE") from None
        self.place = address.render_as_string(hide_password=True)

    def prepare(self, connection: sql.Connection, *, writes: bool) -> None:
        # One process at a time makes the tables; the lock ends with the transaction.
        connection.execute(sql.text("SELECT pg_advisory_xact_lock(742617)"))
        version = 0
        if sql.inspect(connection).has_table("onlooker_version"):
            version = connection.execute(sql.text("SELECT version FROM onlooker_version")).scalar_one()
        if version > VERSION:
            raise InputError("the database was written by a newer version", given=self.place)
        if version < VERSION and not writes:
            raise InputError("nothing is kept in this database", given=self.place, do="give what serve was given")
        if version < VERSION:
            TABLES.create_all(connection)
            for statement in _TSVECTOR:
                connection.execute(sql.text(statement))
            connection.execute(sql.text(f"INSERT INTO onlooker_version VALUES ({VERSION})"))

    def index(self, connection: sql.Connection, number: int, text: str) -> None:
        statement = "UPDATE events SET words = to_tsvector('simple', :text) WHERE id = :number"
        connection.execute(sql.text(statement), {"text": folded(text), "number": number})

    def has_words(self, words: list[str]) -> sql.ColumnElement[bool]:
        # Through plainto_tsquery, which knows no operators; the last word may go on.
        plain = sql.func.plainto_tsquery(sql.text("'simple'"), folded(" ".join(words[:-1])))
        last = sql.func.plainto_tsquery(sql.text("'simple'"), folded(words[-1]))
        begun = sql.cast(sql.func.nullif(sql.cast(last, sql.Text), ""), sql.Text).concat(":*").cast(TSQUERY)
        found: Any = sql.literal_column("events.words")
        # A word of signs alone is in no text, as there is nothing to look for.
        parts = [found.op("@@")(begun)]
        if len(words) > 1:
            parts.append(sql.or_(sql.cast(plain, sql.Text) == "", found.op("@@")(plain)))
        return sql.and_(*parts)

    def num_bytes(self) -> int:
        """What rows hold, without what PostgreSQL needs besides: the files shrink when it finds the time."""
        held = (EVENTS.c.text, EVENTS.c.facts, PICTURES.c.jpeg, CLIPS.c.data, MOMENTS.c.jpeg, MOMENTS.c.vector)
        total = 0
        with self.engine.connect() as connection:
            for column in held:
                size = sql.func.sum(sql.func.octet_length(column))
                total += int(connection.execute(sql.select(size)).scalar() or 0)
        return total

    def give_back(self) -> None:
        pass  # autovacuum does


_TSVECTOR = (
    "CREATE TABLE IF NOT EXISTS onlooker_version (version integer NOT NULL)",
    "DELETE FROM onlooker_version",
    "ALTER TABLE events ADD COLUMN IF NOT EXISTS words tsvector",
    "CREATE INDEX IF NOT EXISTS events_words ON events USING gin (words)",
)


def folded(text: str) -> str:
    """Without the marks above and below letters, as SQLite's index has it too."""
    return "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))


def dialect_of(folder: Path | None, url: str | None) -> Dialect:
    """The database at an address, or else in a folder. Raises `InputError`."""
    if url is not None:
        return Postgres(url)
    if folder is None:
        raise InputError("a database has a folder, or an address", given="neither")
    return Sqlite(folder)
