"""The named sources: a shared session for each, kept open, with its rules and standing questions; changed while the
others go on."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onlooker.core.errors import OnlookerError
from onlooker.server.bodies import Sampling
from onlooker.server.refusals import Refusal
from onlooker.server.rules import put_rule, remove_rule
from onlooker.server.settings import Source, StandingQuestion
from onlooker.server.sources import Feeder, feeder_of
from onlooker.server.stream import Stream, StreamSettings

if TYPE_CHECKING:
    from concurrent.futures import Future

    from onlooker.server.service import Service
    from onlooker.video.clip import Clip

LOG = logging.getLogger("onlooker.server")
LOOKS_OTHER = 0.99
"""Cosine of the mean tokens below which a picture looks other than one before."""


class Watched:
    """What the server watches by itself. Its methods are called on the event loop."""

    def __init__(self, service: "Service", sources: Iterable[Source]) -> None:
        self._service = service
        self._sources = {source.name: source for source in sources}
        self._feeders: dict[str, Feeder] = {}
        self._asking: dict[str, list[asyncio.Task[None]]] = {}
        self._changing = asyncio.Lock()

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    @property
    def sources(self) -> tuple[Source, ...]:
        """All of them, in the order they were named."""
        return tuple(self._sources.values())

    def clip(self, name: str, since_wall: float) -> "Future[Clip | None] | None":
        """What a source sent since a time of day, as a file; None where there is nothing to cut from. Any thread."""
        feeder = self._feeders.get(name)
        return None if feeder is None else feeder.clip(since_wall)

    def is_endless(self, name: str) -> bool:
        """Whether what is watched under a name goes on for ever, as far as is known now."""
        return name in self._feeders and self._feeders[name].is_endless

    def on_bad_pictures(self, name: str) -> str:
        """What comes of bad pictures of a source: `tell`, `alert` or `refuse`."""
        source = self._sources.get(name)
        return "tell" if source is None else source.bad_pictures

    def describe(self) -> list[dict[str, Any]]:
        """Every source, also those that are not up (`starting`), with what a wall of them shows."""
        told_of = []
        for name in self._sources:
            stream = self._service.streams.get(name)
            source = stream.source if stream is not None and stream.state == "live" else None
            state = "starting" if source is None else source["state"]
            told_of.append({"name": name, "session_id": name, "state": state} | _tile(stream))
        return told_of

    async def keep(self) -> None:
        """Keep a shared session open for every source, also after the engine had to be started anew; for ever."""
        # Shielded: when the server ends while the model loads, the worker must still be able to say that it came up.
        await asyncio.shield(asyncio.wrap_future(self._service.worker.started))
        try:
            while True:
                async with self._changing:
                    for source in self.sources:
                        if source.name not in self._service.streams:
                            with contextlib.suppress(Refusal):  # not now: the engine starts, or the server ends
                                await self._open(source)
                await asyncio.sleep(1.0)
        finally:
            for name in list(self._asking):
                self._stop_asking(name)

    async def put(self, source: Source) -> str:
        """Add a source, or change it to this: `added`, `changed` (its stream went on), `reopened` or `unchanged`."""
        async with self._changing:
            before, stream = self._sources.get(source.name), self._service.streams.get(source.name)
            fps = source.fps or self._service.settings.source_fps
            if before == source and (stream is None or stream.settings.source_fps == fps):
                return "unchanged"
            self._sources[source.name] = source
            if before is None or stream is None or stream.state != "live":
                return "added" if before is None else "reopened"  # the next round opens it
            if before.url != source.url or (stream.settings.source_fps, stream.settings.lag_s) != (fps, source.lag_s):
                self._stop_asking(source.name)
                await self._service.close(stream, "its source was changed")
                if before.url != source.url:
                    self._forget(source.name)
                return "reopened"
            await self._change_rules(stream, before, source)
            self._ask_for(stream, source)
            return "changed"

    async def remove(self, name: str) -> None:
        """Watch a source no longer. Raises `Refusal` (404) if there is none of this name."""
        async with self._changing:
            if name not in self._sources:
                raise Refusal(404, "source_not_found", f"there is no source {name[:80]!r}", param="name")
            del self._sources[name]
            self._stop_asking(name)
            if (stream := self._service.streams.get(name)) is not None:
                await self._service.close(stream, "it is no longer watched")
            self._forget(name)

    def note_rules(self, name: str, rules: tuple[Any, ...]) -> None:
        """The rules of a source were changed on its stream: they count from now on, also when it is opened anew."""
        self._sources[name] = replace(self._sources[name], rules=rules)

    def _forget(self, name: str) -> None:
        self._feeders.pop(name, None)
        if self._service.memories is not None:
            self._service.memories.forget(name)

    async def _open(self, source: Source) -> None:
        service = self._service
        fps = source.fps or service.settings.source_fps
        settings = StreamSettings(trace=True, label=source.name, source_fps=fps, lag_s=source.lag_s)
        if service.memories is None:
            stream = await service.open(None, settings, stream_id=source.name)
        else:
            stream = await service.memories.open(source, settings)
        try:
            await self._change_rules(stream, None, source)
        except OnlookerError as error:  # of this model: the source is watched nevertheless
            LOG.error("the rules of source %s cannot be kept: %s", source.name, error)
        keep_s = 0.0 if service.history is None else service.history.keep_s
        self._feeders[source.name] = feeder_of(stream, source.url, fps, keep_s)
        self._feeders[source.name].start()
        self._ask_for(stream, source)

    async def _change_rules(self, stream: Stream, before: Source | None, source: Source) -> None:
        old = {} if before is None else {rule.name: rule for rule in before.rules}
        new = {rule.name: rule for rule in source.rules}
        most = self._service.limits.rules_per_session

        def change(engine: Any) -> None:
            for name in old.keys() - new.keys():
                with contextlib.suppress(Refusal):
                    remove_rule(stream, name)
            for rule in new.values():
                if old.get(rule.name) != rule:
                    put_rule(stream, rule, most)

        if old != new:
            await asyncio.wrap_future(self._service.worker.call(change))
            if self._service.history is not None:
                self._service.history.rules(stream)

    # ------------------------------------------------------------------------------------------- standing questions

    def _ask_for(self, stream: Stream, source: Source) -> None:
        self._stop_asking(source.name)
        self._asking[source.name] = [asyncio.create_task(self._ask_again(stream, one)) for one in source.questions]

    def _stop_asking(self, name: str) -> None:
        for task in self._asking.pop(name, ()):
            task.cancel()

    async def _ask_again(self, stream: Stream, standing: StandingQuestion) -> None:
        """Put a question every so many seconds until the stream ends; what is refused is counted and left out."""
        service, sampling = self._service, Sampling(max_tokens=standing.max_tokens)
        seen: np.ndarray | None = None
        while stream.state == "live":
            await asyncio.sleep(standing.every_s)
            if stream.newest is None:  # the source has shown nothing yet
                continue
            if standing.when == "change":
                before, seen = seen, await _changed(stream, seen)
                if seen is before:
                    continue
            try:
                await service.answer(service.ask(stream, standing.text, sampling, standing=standing.name))
            except Refusal as refusal:
                service.metrics.refused("standing_question")
                LOG.warning("question %s to %s was not answered: %s", standing.name, stream.id, refusal.message)


async def _changed(stream: Stream, before: np.ndarray | None) -> np.ndarray | None:
    """What the picture is like, once it is other than before, by the model's own features; at the end, as before."""
    while stream.state == "live":
        trace = None if stream.session is None else stream.session.trace
        if trace is not None and trace.gist is not None:
            gist = trace.gist / max(float(np.linalg.norm(trace.gist)), 1e-12)
            if before is None or float(gist @ before) < LOOKS_OTHER:
                return gist
        await asyncio.sleep(0.5)
    return before


def _tile(stream: Stream | None) -> dict[str, Any]:
    """What is worth knowing of a source at a glance."""
    if stream is None or stream.newest is None:
        return {"lag_s": None, "age_s": None, "stale": False, "warnings": [], "alert": None}
    age_s, lag_s = stream.age_s, stream.lag(0.95)
    return {
        "lag_s": None if lag_s is None else round(lag_s, 3),
        "age_s": None if age_s is None else round(age_s, 3),
        "stale": stream.is_stale,
        "warnings": stream.warnings(stream.newest.time_s),
        "alert": stream.newest_alert,
    }
