"""A listener that takes discovery messages and states as Home Assistant does, on a real broker."""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from ports import free_port
from running_server import eventually

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
KEYS = {
    "binary_sensor": {"name", "state_topic", "json_attributes_topic", "off_delay", "device_class", "entity_category"},
    "sensor": {"name", "state_topic", "json_attributes_topic"},
    "camera": {"name", "topic"},
}
"""Of each kind the keys that Home Assistant's schema has, as far as any is sent; of others it refuses the message."""
COMMON = {"unique_id", "availability", "availability_mode", "device", "origin"}
STATES = {"binary_sensor": {"ON", "OFF"}}


class Broker:
    """Mosquitto on a port of this machine, which may be stopped and started."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self.port = free_port()
        self._file = folder / "mosquitto.conf"
        self._file.write_text("\n".join([f"listener {self.port} 127.0.0.1", "persistence false", *lines]))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        words = [MOSQUITTO, "-c", str(self._file)]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def broker(folder: Path, *lines: str) -> Iterator[Broker]:
    made = Broker(folder, *(lines or ("allow_anonymous true",)))
    made.start()
    try:
        yield made
    finally:
        made.stop()


class Home:
    """Entities by their unique id, each with its newest state, attributes and whether it is available."""

    def __init__(self, port: int) -> None:
        self.configs: dict[str, dict] = {}
        """By the topic of their announcement."""
        self.newest: dict[str, bytes] = {}
        self.came: list[tuple[str, bytes]] = []
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._client = Client(CallbackAPIVersion.VERSION2, "home")
        self._connected = threading.Event()
        self._client.on_connect = self._hear
        self._client.on_message = self._heard
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()

    def __enter__(self) -> "Home":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: str, retain: bool = False) -> None:
        assert self._connected.wait(30), "the broker did not let us in"
        self._client.publish(topic, payload, 1, retain).wait_for_publish(30)

    def _hear(self, client, *_) -> None:
        client.subscribe("#", 1)
        self._connected.set()

    def _heard(self, client, _, message) -> None:
        with self._lock:
            self.came.append((message.topic, message.payload))
            self.newest[message.topic] = message.payload
            parts = message.topic.split("/")
            if parts[0] != "homeassistant" or parts[-1] != "config":
                return
            if not message.payload:
                self.configs.pop(message.topic, None)
                return
            config = json.loads(message.payload)
            if unknown := config.keys() - KEYS[parts[1]] - COMMON:
                self.wrong.append(f"{message.topic}: {unknown}")
            others = {one["unique_id"] for topic, one in self.configs.items() if topic != message.topic}
            if config["unique_id"] in others:
                self.wrong.append(f"{message.topic}: its id is in use")
            self.configs[message.topic] = config | {"kind": parts[1]}

    def things(self) -> dict[str, dict]:
        """What Home Assistant shows: device and name, with kind, availability, state and attributes."""
        with self._lock:
            return {f"{one['device']['name']} {one['name']}": self._thing(one) for one in self.configs.values()}

    def _thing(self, config: dict) -> dict:
        available = [self.newest.get(one["topic"]) == b"online" for one in config["availability"]]
        topic = config["topic"] if config["kind"] == "camera" else config["state_topic"]
        state = self.newest.get(topic)
        facts = self.newest.get(config.get("json_attributes_topic", ""))
        return {
            "kind": config["kind"],
            "available": all(available),
            "state": state if config["kind"] == "camera" or state is None else state.decode(),
            "facts": json.loads(facts) if facts else None,
        }
