"""What the server's sources are in Home Assistant: announced over MQTT discovery, and kept up to date.

A source is a device with: a binary sensor for each rule (on when it alerts) and for a bad picture, a sensor for its
newest answer and for each standing question, and its picture as a camera. It is unavailable while its source is not
live, or the server is not there. Every other listener finds the same topics under `PREFIX/NODE/SOURCE`.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from onlooker import __version__
from onlooker.core.events import Alert
from onlooker.server.mqtt import Mqtt, MqttSettings
from onlooker.server.settings import Source
from onlooker.server.stream import Event, Stream
from onlooker.server.wire import alert_facts

if TYPE_CHECKING:
    from onlooker.server.service import Service

LONGEST_STATE = 255
"""Characters that a state has in Home Assistant; the whole is in the attributes."""
PICTURE_PIXELS = 640


def announced(settings: MqttSettings, sources: Iterable[Source]) -> dict[str, str]:
    """The topics and messages that announce these sources; none without `discovery`."""
    if settings.discovery is None:
        return {}
    found = {}
    for source in sources:
        for kind, name, facts in _things(settings, source):
            topic = f"{settings.discovery}/{kind}/{settings.client_id}/{source.name}_{name}/config"
            found[topic] = json.dumps(_common(settings, source, name) | facts, sort_keys=True)
    return found


def _common(settings: MqttSettings, source: Source, name: str) -> dict[str, Any]:
    base = f"{settings.base}/{source.name}"
    return {
        "unique_id": f"{settings.client_id}_{source.name}_{name}",
        "availability": [{"topic": f"{settings.base}/status"}, {"topic": f"{base}/status"}],
        "availability_mode": "all",
        "device": {
            "identifiers": [f"{settings.client_id}_{source.name}"],
            "name": source.name,
            "manufacturer": "Onlooker",
            "sw_version": __version__,
        },
        "origin": {"name": "Onlooker", "sw_version": __version__},
    }


def _things(settings: MqttSettings, source: Source) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """Kind, name and what is particular, of everything that a source is in Home Assistant."""
    base = f"{settings.base}/{source.name}"
    for rule in source.rules:
        topic = f"{base}/rules/{rule.name}"
        facts = {"name": rule.name, "state_topic": topic, "json_attributes_topic": f"{topic}/alert"}
        # An alert is a moment, and its end is nobody's message.
        yield "binary_sensor", f"rule_{rule.name}", facts | {"off_delay": max(1, round(settings.alert_s))}
    problem = {"name": "picture problem", "device_class": "problem", "state_topic": f"{base}/picture_problem"}
    more = {"json_attributes_topic": f"{base}/picture_problem/facts", "entity_category": "diagnostic"}
    yield "binary_sensor", "picture_problem", problem | more
    topic = f"{base}/answer"
    yield "sensor", "answer", {"name": "answer", "state_topic": topic, "json_attributes_topic": f"{topic}/facts"}
    for question in source.questions:
        topic = f"{base}/questions/{question.name}"
        facts = {"name": question.name, "state_topic": topic, "json_attributes_topic": f"{topic}/facts"}
        yield "sensor", f"question_{question.name}", facts
    if settings.picture_s:
        yield "camera", "picture", {"name": "picture", "topic": f"{base}/picture"}


class HomeAssistant:
    """Tells a broker of the sources. `note` and `alerted` may be called from any thread and never wait."""

    def __init__(self, settings: MqttSettings) -> None:
        self.settings = settings
        self._announced: dict[str, str] = {}
        self._lock = threading.Lock()
        self._topics: dict[str, set[str]] = {}
        """States of each source that were told."""
        self._pictures: dict[str, tuple[float, float]] = {}
        """When a source's picture was told, and its stream time."""
        listens = ()
        if settings.discovery is not None:
            listens = (f"{settings.discovery}/+/{settings.client_id}/+/config",)
        self.mqtt = Mqtt(settings, listens, self._heard)

    def close(self) -> None:
        """Say goodbye, and end."""
        self.mqtt.close()

    # ----------------------------------------------------------------------------------------------- what happens

    def note(self, stream: Stream, event: Event) -> None:
        """Something happened on a stream."""
        if stream.owner is not None:
            return
        facts = event.facts
        if event.kind == "answer":
            self._say(stream.id, "answer", str(facts["text"]), facts)
            if name := facts.get("standing"):
                self._say(stream.id, f"questions/{name}", str(facts["text"]), facts)
        elif event.kind == "quality":
            self._say(stream.id, "picture_problem", "ON" if facts["problems"] else "OFF", facts)

    def alerted(self, stream: Stream, alert: Alert) -> None:
        """A rule spoke."""
        if stream.owner is None:
            topic = f"{self.settings.base}/{stream.id}/rules/{alert.rule}"
            # Facts first: who acts on the state finds them there.
            self.mqtt.event(f"{topic}/alert", _json(alert_facts(stream, alert) | {"stream": stream.id}))
            self.mqtt.event(topic, "ON")

    def _say(self, source: str, name: str, state: str, facts: dict[str, Any]) -> None:
        topic = f"{self.settings.base}/{source}/{name}"
        state = state if len(state) <= LONGEST_STATE else state[: LONGEST_STATE - 1] + "…"
        self._state(source, f"{topic}/facts", _json(facts))
        self._state(source, topic, state or " ")

    def _state(self, source: str, topic: str, payload: str | bytes) -> None:
        with self._lock:
            self._topics.setdefault(source, set()).add(topic)
        self.mqtt.state(topic, payload)

    # ----------------------------------------------------------------------------------------- what holds, on the loop

    async def keep(self, service: "Service") -> None:
        """Keep the broker up to date with what is watched, until it is cancelled."""
        while True:
            self._announce(service.watched.sources)
            for told_of in service.watched.describe():
                name, is_live = told_of["name"], told_of["state"] == "live"
                self._state(name, f"{self.settings.base}/{name}/status", "online" if is_live else "offline")
                if is_live and told_of["age_s"] is not None and not service.streams[name].quality.problems:
                    self._state(name, f"{self.settings.base}/{name}/picture_problem", "OFF")
            await self._tell_pictures(service)
            self.mqtt.flush()
            await asyncio.sleep(1.0)

    def _announce(self, sources: tuple[Source, ...]) -> None:
        wanted = announced(self.settings, sources)
        for topic in self._announced.keys() - wanted.keys():
            self.mqtt.state(topic, None)
        self._announced = wanted
        for topic, message in wanted.items():
            self.mqtt.state(topic, message)
        named = {source.name: {question.name for question in source.questions} for source in sources}
        with self._lock:
            gone = [topic for name in self._topics.keys() - named.keys() for topic in self._topics.pop(name)]
            for name, topics in self._topics.items():
                asked = [topic for topic in topics if topic.startswith(f"{self.settings.base}/{name}/questions/")]
                past = {topic for topic in asked if topic.removesuffix("/facts").rpartition("/")[2] not in named[name]}
                topics -= past
                gone += past
        for topic in gone:
            self.mqtt.state(topic, None)
        self._pictures = {name: told for name, told in self._pictures.items() if name in named}

    async def _tell_pictures(self, service: "Service") -> None:
        every_s = self.settings.picture_s
        if not every_s or not self.mqtt.is_connected:  # old pictures are nothing to wait in a queue
            return
        for source in service.watched.sources:
            stream = service.streams.get(source.name)
            newest = None if stream is None else stream.newest
            told_s, time_s = self._pictures.get(source.name, (float("-inf"), None))
            if newest is None or newest.time_s == time_s or time.monotonic() - told_s < every_s:
                continue
            self._pictures[source.name] = (time.monotonic(), newest.time_s)
            jpeg = await asyncio.get_running_loop().run_in_executor(service.pool, newest.jpeg, PICTURE_PIXELS)
            self._state(source.name, f"{self.settings.base}/{source.name}/picture", jpeg)

    def _heard(self, topic: str, payload: bytes) -> None:
        """The broker still has something that we announced: a thing of an earlier run, if it is none of now."""
        if payload and topic not in self._announced:
            self.mqtt.forget(topic)


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, allow_nan=False)
