"""A connection to an MQTT broker: what holds now, sent again after every loss, and events, which wait in a queue.

Needs the extra `mqtt` (paho-mqtt). Paho's own thread connects, again and again where it must, and sends.
"""

import logging
import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from onlooker.core.errors import InputError

LOG = logging.getLogger("onlooker.server")
WAITING = 256
"""Most messages that wait for the broker; further events are dropped and counted, further states sent later."""
SHORTEST_PAUSE_S = 1
LONGEST_PAUSE_S = 60
"""Most seconds between two attempts to connect; the first is after one, and each pause is twice the one before."""
KEEPALIVE_S = 30
"""Seconds of silence after which each side asks whether the other is there."""
PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True)
class MqttSettings:
    """A broker and what it is told. Raises `InputError` for an address or a name that is none."""

    url: str = field(repr=False)
    """`mqtt://` or `mqtts://` (TLS), with a name and password where the broker wants them."""
    prefix: str = "onlooker"
    """What every topic of ours begins with."""
    node: str = "server"
    """Name of this server among others on the same broker; the second part of its topics."""
    discovery: str | None = "homeassistant"
    """What the topics begin with where Home Assistant looks for new things; None: nothing is announced."""
    ca_file: Path | None = None
    """Certificates of those who may sign the broker's; None for the system's."""
    cert_file: Path | None = None
    key_file: Path | None = None
    """Our own certificate and its key, for brokers that ask for one."""
    picture_s: float = 10.0
    """Seconds from one picture of a source to the next; 0 for none."""
    alert_s: float = 30.0
    """Seconds after which Home Assistant takes an alert for over."""

    def __post_init__(self) -> None:
        address_of(self.url)
        for name in ("prefix", "discovery"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", value):
                raise InputError(f"{name}: topics are words with / between them", given=value[:80], do="home/onlooker")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", self.node):
            raise InputError("node: a server's name is one word", given=self.node[:80], do="attic")
        if (self.cert_file is None) != (self.key_file is None):
            raise InputError("a certificate goes with its key", do="give cert_file and key_file, or neither")
        if not self.picture_s >= 0 or not self.alert_s > 0:
            raise InputError("picture_s is 0 or more, alert_s above 0", given=f"{self.picture_s}, {self.alert_s}")

    def check(self) -> None:
        """Raise `InputError` when the extra is missing or a certificate cannot be read."""
        try:
            import paho.mqtt.client  # noqa: F401
        except ModuleNotFoundError as error:
            raise InputError(
                "MQTT needs the package paho-mqtt", given=str(error.name), do="pip install 'onlooker[mqtt]'"
            ) from error
        self.tls()

    def tls(self) -> ssl.SSLContext | None:
        """How the connection is encrypted. Raises `InputError` when a certificate cannot be read."""
        if not address_of(self.url)[2]:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None and self.key_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as error:
            raise InputError("a certificate for MQTT cannot be read", given=str(error)) from error
        return context

    @property
    def base(self) -> str:
        """What every topic of this server begins with."""
        return f"{self.prefix}/{self.node}"

    @property
    def client_id(self) -> str:
        """The name that the broker knows this server by."""
        return re.sub(r"[^A-Za-z0-9_-]", "_", f"{self.prefix}_{self.node}")


def address_of(url: str) -> tuple[str, int, bool, str | None, str | None]:
    """Host, port, whether it is encrypted, name and password. Raises `InputError` for what is no broker's address."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = parts = None
    if parts is None or parts.scheme not in PORTS or not host or parts.path not in ("", "/") or parts.query:
        scheme = parts.scheme if parts else "none"
        raise InputError("a broker's address is mqtt://HOST or mqtts://HOST", given=f"scheme {scheme[:20]}")
    name, password = (None if one is None else unquote(one) for one in (parts.username, parts.password))
    return host, port or PORTS[parts.scheme], parts.scheme == "mqtts", name, password


@dataclass
class Counts:
    """What became of the messages."""

    delivered: int = 0
    """The broker said that it has them."""
    dropped: int = 0
    """Events that found the queue full."""
    connections: int = 0
    failures: int = 0
    """Connections refused or lost."""
    last_error: str | None = None


class Mqtt:
    """A client that stays connected. `state` and `event` may be called from any thread and never wait.

    `status` of the server (`PREFIX/NODE/status`) is `online` while it is connected and `offline` else, which the broker
    says itself when the server is killed (its last will). `on_message` is told what comes on the topics in `listens`,
    on the client's thread, and may call `state`. Raises `InputError` when the extra is missing or a certificate cannot
    be read.
    """

    def __init__(
        self,
        settings: MqttSettings,
        listens: tuple[str, ...] = (),
        on_message: Callable[[str, bytes], None] = lambda topic, payload: None,
    ) -> None:
        settings.check()
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.settings, self.counts = settings, Counts()
        self._listens, self._on_message = listens, on_message
        self._states: dict[str, bytes] = {}
        self._unsent: dict[str, None] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._told_error: str | None = None
        self._was_up = False
        host, port, _, name, password = address_of(settings.url)
        self._client = client = Client(CallbackAPIVersion.VERSION2, settings.client_id)
        if (context := settings.tls()) is not None:
            client.tls_set_context(context)
        client.username_pw_set(name, password)
        client.max_queued_messages_set(WAITING)
        client.reconnect_delay_set(SHORTEST_PAUSE_S, LONGEST_PAUSE_S)
        client.will_set(self.status_topic, "offline", qos=1, retain=True)
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_connect_fail, client.on_publish, client.on_message = self._not_reached, self._delivered, self._heard
        client.connect_async(host, port, KEEPALIVE_S)
        client.loop_start()

    @property
    def status_topic(self) -> str:
        """Where it is told whether the server is there."""
        return f"{self.settings.base}/status"

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there now."""
        return self._client.is_connected()

    def state(self, topic: str, payload: bytes | str | None) -> None:
        """Something holds from now on: the broker keeps it for whoever asks later. None: nothing is to be kept."""
        data = payload.encode() if isinstance(payload, str) else payload or b""
        with self._lock:
            if self._states.get(topic, b"") == data:
                return
            if data:
                self._states[topic] = data
            else:
                self._states.pop(topic, None)
            self._unsent[topic] = None
        self.flush()

    def forget(self, topic: str) -> None:
        """Have the broker keep nothing on a topic, whoever wrote it."""
        with self._lock:
            self._states.pop(topic, None)
            self._unsent[topic] = None
        self.flush()

    def flush(self) -> None:
        """Send the states that changed, as far as the queue has room; call it again, for what had none."""
        # Never waited for: who holds it may be waiting for the thread that wants it.
        if not self.is_connected or not self._sending.acquire(blocking=False):
            return
        try:
            while True:
                with self._lock:
                    if not self._unsent:
                        return
                    topic = next(iter(self._unsent))
                    del self._unsent[topic]
                    data = self._states.get(topic, b"")
                if not self._publish(topic, data, retain=True):
                    with self._lock:
                        self._unsent[topic] = None
                    return
        finally:
            self._sending.release()

    def event(self, topic: str, payload: bytes | str) -> bool:
        """Something happened, once. False when it was dropped, as the broker is away or slow and too much waits."""
        sent = self._publish(topic, payload, retain=False)
        if not sent:
            with self._lock:
                self.counts.dropped += 1
        return sent

    def close(self, within_s: float = 3.0) -> None:
        """Say that the server leaves, and end."""
        if self.is_connected:
            info = self._client.publish(self.status_topic, "offline", qos=1, retain=True)
            try:
                info.wait_for_publish(within_s)
            except (ValueError, RuntimeError):  # the queue is full, or the broker went away meanwhile
                LOG.warning("the broker was not told that the server ends")
        self._client.disconnect()
        self._client.loop_stop()

    # ------------------------------------------------------------------------------------------- on the client's thread

    def _publish(self, topic: str, payload: bytes | str, *, retain: bool) -> bool:
        from paho.mqtt.enums import MQTTErrorCode

        return self._client.publish(topic, payload, 1, retain).rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE

    def _connected(self, client: Any, _: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._failed(f"the broker refused: {reason}")
            return
        LOG.info("the MQTT broker is there")
        with self._lock:
            self.counts.connections += 1
            self._told_error, self._was_up = None, True
            self._unsent = dict.fromkeys([*self._unsent, *self._states])
        for topic in self._listens:
            client.subscribe(topic, 1)
        self._publish(self.status_topic, "online", retain=True)
        self.flush()

    def _disconnected(self, client: Any, _: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure and self._was_up:  # else it was never made, which was told
            self._failed(f"the connection was lost: {reason}")
        self._was_up = False

    def _not_reached(self, client: Any, _: Any) -> None:
        self._failed("the broker cannot be reached")

    def _failed(self, why: str) -> None:
        with self._lock:
            self.counts.failures += 1
            self.counts.last_error = why
            is_news, self._told_error = why != self._told_error, why
        if is_news:  # it is tried again all the time
            LOG.warning("MQTT: %s; it is tried again", why)

    def _delivered(self, client: Any, _: Any, number: int, reason: Any, properties: Any) -> None:
        with self._lock:
            self.counts.delivered += 1
        self.flush()

    def _heard(self, client: Any, _: Any, message: Any) -> None:
        self._on_message(message.topic, message.payload)
