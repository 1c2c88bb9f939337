"""What a server allows, and how it is reached."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onlooker.core.contracts import ResponsePolicy, SchedulePolicy
from onlooker.core.errors import InputError
from onlooker.engine import SLO
from onlooker.respond import Rule
from onlooker.server.database import Retention
from onlooker.server.embedding import SearchSettings
from onlooker.server.hooks import Hook
from onlooker.server.mqtt import MqttSettings

MB = 2**20
SERVED = SLO(frame_lag_s=2.0, first_token_s=5.0, step_s=0.2, most_frames=32, most_questions=256)
"""Looser than a bench's, as a small machine must serve too; the server's own limits bound the questions."""


@dataclass(frozen=True)
class Limits:
    """Caps that keep one client from spoiling the service for others. Raises `InputError` for values out of range."""

    sessions: int = 64
    """Most sessions open at once, named sources not counted."""
    sessions_per_key: int | None = None
    """Most sessions one key may have open; None for all where there is one key, and half of them where there are
    several, so that no key can take the whole server."""
    memory_bytes: int = 8 * 2**30
    """Bytes all sessions together may hold, named sources too. From there on new ones are refused; beyond it, the
    session that holds the most ends with that reason, and a named source begins anew."""
    snapshots_per_key: int = 64
    """Snapshots one key may keep on the server."""
    snapshot_bytes_per_key: int = 16 * 2**30
    """Bytes of all snapshots of one key."""
    idle_s: float = 600.0
    """Seconds without a frame, a question or a reader after which a session is closed."""
    frame_bytes: int = 8 * MB
    """Largest encoded picture."""
    frame_pixels: int = 16 * 2**20
    """Most pixels of a picture, before it is decoded."""
    fps: float = 60.0
    """Most pictures a session may be pushed in a second."""
    question_chars: int = 2000
    """Longest question."""
    questions: int = 64
    """Most questions in flight on the server."""
    questions_per_session: int = 8
    """Most questions in flight on one session."""
    new_tokens: int = 1024
    """Longest answer in tokens."""
    rules_per_session: int = 16
    """Most alert rules of one session."""
    thumbnail_bytes: int = 4 * MB
    """Bytes of thumbnails one session keeps; when full, every other one goes."""
    video_bytes: int = 256 * MB
    """Largest video that is fetched or sent inline for one question."""
    video_frames: int = 1200
    """Most frames looked at for one question about a video."""
    body_bytes: int = 64 * MB
    """Largest request body that is not a frame."""
    receiving_bytes: int = 512 * MB
    """Bytes of request bodies held at once."""
    connections: int = 2048
    """Connections at once; requests beyond are refused with 503."""
    waiting: int = 512
    """Connections that have no request under way; beyond, the oldest of the address that has the most is closed."""
    requests_per_address: int = 512
    """Requests and sockets under way from one address."""
    head_s: float = 10.0
    """Seconds a client may take to send the head of a request."""
    receive_s: float = 60.0
    """Seconds a client may take to send a body."""
    send_s: float = 30.0
    """Seconds a client may leave unread what it is sent."""
    silence_s: float = 20.0
    """Seconds in which a WebSocket's client answers a ping, sent as often; and in which a machine answers at all."""
    events_s: float = 3600.0
    """Longest that one reply of events lasts. Behind a proxy nothing tells that its reader has vanished; one that is
    still there asks again, from where it was."""
    drain_s: float = 30.0
    """Seconds that answers in flight may take when the server is told to end."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"{name} must be above 0", given=str(getattr(self, name)), do="leave it out")


@dataclass(frozen=True)
class StandingQuestion:
    """A question that the server puts to a source by itself, again and again."""

    name: str
    text: str
    every_s: float = 60.0
    """Least seconds from one asking to the next."""
    max_tokens: int | None = None
    when: Literal["time", "change"] = "time"
    """Asked whenever it is time, or only if the picture looks other than at the asking before."""


BadPictures = Literal["tell", "alert", "refuse"]


@dataclass(frozen=True)
class Source:
    """Something that the server watches by itself, for everyone with a key."""

    name: str
    url: str = field(repr=False)
    """Its address; it may hold a password, and is shown nowhere."""
    fps: float | None = None
    """Frames looked at per second; None for what the server looks at (`source_fps`)."""
    rules: tuple[Rule, ...] = ()
    questions: tuple[StandingQuestion, ...] = ()
    lag_s: float | None = None
    """Seconds within which a frame is promised to be in memory; later ones are counted. None for the server's."""
    bad_pictures: BadPictures = "tell"
    """What comes of a picture that is frozen, black, covered or blurred: it is told (event, metric, database, a warning
    with answers); it is an alert of the rule `picture` as well; or questions about now are refused besides."""


Role = Literal["reader", "asker", "admin"]


@dataclass(frozen=True)
class Key:
    """A key with a name, a role and limits. Readers see and hear; askers ask, and open sessions of their own; admins
    change what the server watches."""

    name: str
    text: str = field(repr=False)
    role: Role = "asker"
    sessions: int | None = None
    """Most sessions it may have open; None for what every key may have."""
    questions_per_minute: float | None = None
    """Most questions a minute; None for no bound of its own."""


@dataclass(frozen=True)
class ServerSettings:
    """How a server is set up. Raises `InputError` for a setting that would not be safe."""

    model: str = "pocket-aware"
    """The name clients call the model by."""
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    """Keys that clients show as `Authorization: Bearer KEY`; none means that only this machine may connect."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts (names or networks such as 10.0.0.0/8) that videos may be fetched from though they are not public."""
    snapshots: Path | None = None
    """Folder of snapshots; None means that there are none."""
    named_keys: tuple[Key, ...] = ()
    """Further keys, with roles and limits of their own."""
    state: Path | None = None
    """Folder of the database of what was said and seen; None: nothing is kept."""
    database: str | None = field(default=None, repr=False)
    """Address of a PostgreSQL database in place of the one in the folder."""
    search: SearchSettings = field(default_factory=SearchSettings)
    retention: Retention = field(default_factory=Retention)
    keep_sessions: bool = False
    """Whether what clients' own sessions say is kept too, each for its key; what the sources say always is."""
    sources: tuple[Source, ...] = ()
    """What the server watches by itself."""
    source_fps: float = 1.0
    """Frames looked at per second of a named source."""
    proxies: tuple[str, ...] = ()
    """Addresses whose `X-Forwarded-For` is believed, so that what is counted by address is the client's own."""
    webhook: tuple[str, str] | None = None
    """(address, secret): where every alert is sent, and what signs it. Named by the operator, so it may be private."""
    hooks: tuple[Hook, ...] = ()
    """Further receivers of alerts, each for some sources and rules."""
    mqtt: MqttSettings | None = None
    """A broker that is told what happens."""
    whip: bool = False
    """Whether clients may publish over WebRTC, which opens UDP ports (extra `webrtc`)."""
    worker: str = "w0"
    """Name of this worker, the first part of its session ids."""
    limits: Limits = field(default_factory=Limits)
    slo: SLO = field(default_factory=lambda: SERVED)
    response: ResponsePolicy | None = None
    """Policy of the rules that name none; None: threshold."""
    schedule: str | SchedulePolicy = "oldest_first"
    """Whose frame is next, among all sessions."""
    """What the engine keeps for every stream, and when it refuses or does with less."""

    @property
    def all_keys(self) -> tuple[Key, ...]:
        """Every key. A plain one is an admin's where it is the only key: with several, none stands above the others."""
        role: Role = "admin" if len(self.keys) == 1 and not self.named_keys else "asker"
        plain = (
            Key(f"key{number}" if len(self.keys) > 1 else "key", text, role) for number, text in enumerate(self.keys)
        )
        return (*plain, *self.named_keys)

    @property
    def sessions_per_key(self) -> int:
        """Sessions one key may have open."""
        if self.limits.sessions_per_key is not None:
            return self.limits.sessions_per_key
        return self.limits.sessions if len(self.all_keys) < 2 else -(-self.limits.sessions // 2)

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError("two sources have one name", given=twice, do="name each source once")
        if not self.all_keys and not is_loopback(self.host):
            raise InputError(
                "without a key the server is for this machine only",
                given=f"host {self.host}",
                do="give --api-key-file FILE (or set ONLOOKER_API_KEY), or bind to 127.0.0.1",
            )
        texts = [key.text for key in self.all_keys]
        if any(len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text for text in texts):
            raise InputError("a key has at least 16 printable ASCII characters", do="openssl rand -hex 24")
        if len(set(texts)) < len(texts):
            raise InputError("two keys are the same", do="openssl rand -hex 24")


def is_loopback(host: str) -> bool:
    """Whether a host name or address stands for this machine only."""
    import ipaddress

    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
