"""Search by meaning: moments of the sources, kept with a vector each, and found by what they look like.

With the served model's own features (the mean of a frame's tokens) a moment finds others that look like it. Words have
no place among those features: words find what was said, and the moments of that find others like them. With an
endpoint whose vectors of words and of pictures (or captions) lie in one space, words find moments themselves.
"""

import asyncio
import logging
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sql

from onlooker.core.errors import OnlookerError, SourceError
from onlooker.server.bodies import Sampling
from onlooker.server.database import Database, Wanted
from onlooker.server.dialects import Dialect
from onlooker.server.embedding import Endpoint, SearchSettings
from onlooker.server.refusals import Refusal
from onlooker.server.stream import Stream
from onlooker.server.tables import MOMENTS

if TYPE_CHECKING:
    from onlooker.server.service import Service

LOG = logging.getLogger("onlooker.server")
ALIKE = 0.99
"""Cosine from which on a moment looks as the one that was kept before it, and is not kept; once a minute one is."""
LONGEST_S = 60.0
COMPARED = 50_000
"""Most moments that one search compares, the newest of those that are wanted."""
SEEDS = 16
"""Most events with the words whose moments are looked for."""
UNSAID = "nothing that was said has these words, and the model's own features know no words"
NEAR_S = 15.0
"""Seconds within which a moment belongs to an event."""


@dataclass(frozen=True)
class Moment:
    """A picture of a source to keep, and its vector."""

    stream: str
    time_s: float
    wall: float
    space: str
    vector: np.ndarray = field(repr=False)
    jpeg: bytes = field(repr=False)
    text: str = ""
    """Its caption, where the vector is made of one."""

    def write(self, connection: sql.Connection, dialect: Dialect) -> None:
        """Write it, on the database's thread."""
        row = {name: getattr(self, name) for name in ("stream", "time_s", "wall", "space", "jpeg")}
        row["text"] = self.text.replace("\0", " ")
        connection.execute(MOMENTS.insert().values(row | {"vector": packed(self.vector)}))


class Moments:
    """The moments in a database. `vectors` and `find` may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, wanted: Wanted, space: str, towards: np.ndarray | None, seeds: Sequence[int] = ()) -> list[Any]:
        """The moments that are wanted and most like a vector (or, None: like those of the numbers `seeds`), best first,
        each with its `score`: the cosine, after what all of them have in common is taken away."""
        rows, vectors = self._vectors(wanted, space, seeds)
        if towards is not None and len(rows) and len(towards) != vectors.shape[1]:
            return []
        if not len(rows):
            return []
        common = vectors.mean(0)
        centred = unit(vectors - common)
        if towards is None:
            places = [n for n, row in enumerate(rows) if row.id in set(seeds)]
            if not places:
                return []
            aim = centred[places].mean(0)
        else:
            aim = towards
        scores = centred @ unit(aim[None])[0]
        best = np.argsort(-scores, kind="stable")
        kept = [n for n in best.tolist() if _is_wanted(rows[n], wanted)][: wanted.limit]
        return [_told(rows[n], float(scores[n])) for n in kept]

    def near(self, events: Sequence[dict[str, Any]], space: str) -> list[int]:
        """The numbers of the moments of these events: the nearest in time of the same source."""
        found = []
        with self._database.engine.connect() as connection:
            for event in events:
                moment = event["seen_wall"] or event["wall"]
                apart = sql.func.abs(MOMENTS.c.wall - moment)
                query = sql.select(MOMENTS.c.id).where(
                    MOMENTS.c.stream == event["stream"], MOMENTS.c.space == space, apart <= NEAR_S
                )
                if (number := connection.execute(query.order_by(apart).limit(1)).scalar()) is not None:
                    found.append(number)
        return found

    def said(self, wanted: Wanted, space: str) -> list[int]:
        """The numbers of the moments about which something with these words was said."""
        events = self._database.find(Wanted(wanted.words, wanted.stream, owner=wanted.owner, limit=SEEDS))
        return self.near(events, space)

    def newest_space(self) -> str | None:
        """The space of the newest moment."""
        with self._database.engine.connect() as connection:
            return connection.execute(sql.select(MOMENTS.c.space).order_by(MOMENTS.c.id.desc()).limit(1)).scalar()

    def picture(self, number: int) -> bytes | None:
        """The picture of a moment."""
        with self._database.engine.connect() as connection:
            return connection.execute(sql.select(MOMENTS.c.jpeg).where(MOMENTS.c.id == number)).scalar()

    def tidy(self, share: float) -> None:
        """Let go of the oldest while moments take more than this share of what the database may hold."""
        most = share * self._database.retention.num_bytes
        size = sql.func.octet_length if self._database.engine.name != "sqlite" else sql.func.length
        with self._database.engine.begin() as connection:
            each = size(MOMENTS.c.jpeg) + size(MOMENTS.c.vector)
            held, count = connection.execute(sql.select(sql.func.sum(each), sql.func.count())).one()
            if held and held > most:
                gone = sql.select(MOMENTS.c.id).order_by(MOMENTS.c.id).limit(max(1, round(count * (1 - most / held))))
                connection.execute(MOMENTS.delete().where(MOMENTS.c.id.in_(gone)))

    def _vectors(self, wanted: Wanted, space: str, seeds: Sequence[int]) -> tuple[list[Any], np.ndarray]:
        columns = [MOMENTS.c[name] for name in ("id", "wall", "time_s", "stream", "text", "vector")]
        query = sql.select(*columns).where(MOMENTS.c.space == space).order_by(MOMENTS.c.id.desc()).limit(COMPARED)
        for value, column, compare in (
            (wanted.stream, MOMENTS.c.stream, operator.eq),
            (wanted.since, MOMENTS.c.wall, operator.ge),
            (wanted.until, MOMENTS.c.wall, operator.lt),
        ):
            if value is not None:  # what is like something is looked for here, wherever that is
                query = query.where(sql.or_(compare(column, value), MOMENTS.c.id.in_(seeds)))
        with self._database.engine.connect() as connection:
            rows = list(connection.execute(query))
        rows = [row for row in rows if len(row.vector) == len(rows[0].vector)]
        return rows, np.stack([unpacked(row.vector) for row in rows]) if rows else np.zeros((0, 0), np.float32)


class Finder:
    """Keeps moments of a server's sources, and finds them. Its methods are called on the event loop."""

    def __init__(self, service: "Service", database: Database, settings: SearchSettings) -> None:
        self._service, self._database, self.settings = service, database, settings
        self.moments = Moments(database)
        self.space = settings.space(service.settings.model)
        self._endpoint = None if settings.endpoint is None else Endpoint(settings)
        self._newest: dict[str, tuple[float, np.ndarray]] = {}
        self._told_error = ""
        self._searching = asyncio.Semaphore(2)  # each holds the vectors of all that it compares

    async def keep(self) -> None:
        """Keep moments until it is cancelled."""
        tidied = time.monotonic()
        try:
            while True:
                await asyncio.sleep(1.0)
                for source in self._service.watched.sources:
                    stream = self._service.streams.get(source.name)
                    if self.settings.every_s and stream is not None and stream.state == "live":
                        await self._note(stream)
                if time.monotonic() - tidied > 60.0:
                    tidied = time.monotonic()
                    await asyncio.to_thread(self.moments.tidy, self.settings.share)
        finally:
            if self._endpoint is not None:
                await self._endpoint.close()

    async def _note(self, stream: Stream) -> None:
        """Keep what a stream shows now, if it is time and looks other than what was kept last."""
        trace = None if stream.session is None else stream.session.trace
        if trace is None or trace.gist is None or (wall := stream.wall_of(trace.time_s)) is None:
            return
        gist = unit(trace.gist[None])[0]
        past_s, past = self._newest.get(stream.id, (float("-inf"), None))
        since_s = trace.time_s - past_s
        if 0 <= since_s < self.settings.every_s:
            return
        if past is not None and 0 <= since_s < LONGEST_S and float(past @ gist) > ALIKE:
            return
        picture = stream.album.nearest(trace.time_s)
        if picture is None:
            return
        self._newest[stream.id] = (trace.time_s, gist)
        try:
            vector, text = await self._vector(stream, gist, picture[1])
        except (OnlookerError, Refusal) as error:
            self._service.metrics.failed("embedding")
            if str(error) != self._told_error:
                self._told_error = str(error)
                LOG.warning("moments of %s are not kept: %s", stream.id, error)
            return
        self._database.add(Moment(stream.id, trace.time_s, wall, self.space, vector, picture[1], text))

    async def _vector(self, stream: Stream, gist: np.ndarray, jpeg: bytes) -> tuple[np.ndarray, str]:
        if self._endpoint is None:
            return gist, ""
        if not self.settings.caption:
            return await self._endpoint.of_picture(jpeg), ""
        question = self._service.ask(stream, self.settings.caption, Sampling(), standing="caption")
        text = (await self._service.answer(question)).text
        return await self._endpoint.of_words(text or " "), text

    async def find(self, wanted: Wanted, like: int | None) -> dict[str, Any]:
        """Moments by meaning. Raises `Refusal`: 404 for a moment that is not there, 502 without the endpoint."""
        seeds: list[int] = []
        towards = None
        why = None
        if like is not None:
            if await asyncio.to_thread(self.moments.picture, like) is None:
                raise Refusal(404, "moment_not_found", "there is no moment of that number", param="like")
            seeds = [like]
        elif not wanted.words.strip():
            raise Refusal(422, "invalid_request", "search by meaning needs words, or a moment (like)", param="q")
        elif self._endpoint is not None:
            try:
                towards = await self._endpoint.of_words(wanted.words)
            except SourceError as error:
                raise Refusal(502, "no_embedding", str(error)) from error
        else:
            seeds = await asyncio.to_thread(self.moments.said, wanted, self.space)
            why = None if seeds else UNSAID
        if not seeds and towards is None:
            return {"events": [], "next": None, "why": why}
        async with self._searching:
            found = await asyncio.to_thread(self.moments.find, wanted, self.space, towards, seeds)
        return {"events": found, "next": None, "why": why}


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    return vectors.astype(np.float32) / np.maximum(lengths, 1e-12)


def packed(vector: np.ndarray) -> bytes:
    """A vector as it is kept: of length 1, float16."""
    return unit(vector[None])[0].astype("<f2").tobytes()


def unpacked(data: bytes) -> np.ndarray:
    """A vector that was kept, float32."""
    return np.frombuffer(data, "<f2").astype(np.float32)


def _is_wanted(row: Any, wanted: Wanted) -> bool:
    return (
        (wanted.stream is None or row.stream == wanted.stream)
        and (wanted.since is None or row.wall >= wanted.since)
        and (wanted.until is None or row.wall < wanted.until)
    )


def _told(row: Any, score: float) -> dict[str, Any]:
    return {
        "moment": row.id,
        "score": round(score, 4),
        "wall": row.wall,
        "time_s": row.time_s,
        "stream": row.stream,
        "text": row.text,
        "picture": f"/v1/search/moments/{row.id}.jpg",
    }
