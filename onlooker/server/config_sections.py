"""The sections of the configuration file: what each may say, and what the server makes of it."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from onlooker.core.contracts import ResponsePolicy
from onlooker.core.errors import InputError
from onlooker.core.kinds import defaults
from onlooker.core.sizes import num_bytes
from onlooker.respond import Rule
from onlooker.server.bodies import Name
from onlooker.server.embedding import SearchSettings
from onlooker.server.hooks import Hook
from onlooker.server.mqtt import MqttSettings
from onlooker.server.settings import BadPictures, Key, Role, Source, StandingQuestion
from onlooker.server.webhooks import check_url, signing_key


def _is_size(text: str) -> str:
    try:
        num_bytes(text)
    except InputError as error:
        raise ValueError(f"{error.what}, {error.do}") from None
    return text


Size = Annotated[str, AfterValidator(_is_size)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fps = Annotated[float, Field(gt=0, le=240, allow_inf_nan=False)]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]


class Section(BaseModel):
    """A part of the file; what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid")


# One key for every kind of method that an engine has.
_keys: Any = {kind: (str, text) for kind, text in defaults(served=True, scheduled=True).items()}
_Methods: Any = create_model("_Methods", __base__=Section, **_keys)


class ModelSection(_Methods):
    """What is served, and with which methods."""

    name: str = "pocket-aware"
    device: str = "auto"
    dtype: str = "auto"
    pairs: bool | None = None
    device_budget: Size | None = None
    host_budget: Size | None = None
    kv: str = ""
    disk: str = ""
    arithmetic: Literal["model", "fp8"] = "model"
    response: str = "threshold"
    """Policy of the rules that name none."""


class ServerSection(Section):
    """Where it listens, what it may reach, where it keeps things."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    log: Literal["auto", "json", "plain"] = "auto"
    fps: Fps = 1.0
    snapshots: Path | None = None
    state: Path | None = None
    api_key_file: Path | None = None
    allow_host: list[str] = []
    proxy: list[str] = []
    whip: bool = False
    devices: list[str] = []


class LimitsSection(Section):
    """What clients may take."""

    max_sessions: int = Field(default=64, ge=1)
    max_sessions_per_key: int | None = Field(default=None, ge=1)
    max_memory: Size = "8GiB"
    thumbnails: Size = "4MiB"
    idle: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 600.0


class SLOSection(Section):
    """What every stream is promised, in seconds."""

    frame_lag_s: Above0 = 2.0
    first_token_s: Above0 = 5.0


class RetentionSection(Section):
    """How much of what was said and seen is kept in `server.state`."""

    days: Above0 = 30.0
    max_bytes: Size = "2GiB"
    sessions: bool = False
    clip_s: Annotated[float, Field(ge=0, le=300, allow_inf_nan=False)] = 8.0
    memory_every_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 30.0
    memory_bytes: Size = "1GiB"


class Secret(Section):
    """A value that may be kept outside the file: in an environment variable or a file of its own."""

    def read(self, name: str) -> str:
        """The value of `name`, `name_env` or `name_file`. Raises `InputError` unless there is exactly one of them."""
        known = [way for way in (name, f"{name}_env", f"{name}_file") if way in type(self).model_fields]
        ways = {way: getattr(self, way) for way in known}
        given = {way: value for way, value in ways.items() if value is not None}
        if len(given) != 1:
            raise InputError(f"give one of {', '.join(ways)}", given=", ".join(given) or "none")
        way, value = given.popitem()
        if way.endswith("_env"):
            if not (found := os.environ.get(value, "").strip()):
                raise InputError(f"{way}: the environment variable {value} is not set")
            return found
        if way.endswith("_file"):
            try:
                found = Path(value).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                why = getattr(error, "strerror", None) or "not text"
                raise InputError(f"{way}: {value} cannot be read ({why})") from None
            if not found:
                raise InputError(f"{way}: {value} is empty")
            return found
        return value


class WebhookSection(Secret):
    """Where every alert is sent, and what signs it."""

    url: str | None = None
    url_env: str | None = None
    url_file: Path | None = None
    secret: str | None = None
    secret_env: str | None = None
    secret_file: Path | None = None


class HookSection(WebhookSection):
    """A further receiver of alerts."""

    name: Name
    body: str = Field(default="standard", max_length=8000)
    sources: list[str] = []
    rules: list[str] = []

    def hook(self) -> Hook:
        """As the server knows it. Raises `InputError`."""
        signs = any((self.secret, self.secret_env, self.secret_file))
        secret = self.read("secret") if signs else None
        if secret is not None:
            signing_key(secret)
        elif self.body == "standard":
            raise InputError("a standard body is signed", do="give secret_env or secret_file, or another body")
        return Hook(self.name, check_url(self.read("url")), secret, self.body, tuple(self.sources), tuple(self.rules))


class DatabaseSection(Secret):
    """A PostgreSQL database in place of the one in `server.state`."""

    url: str | None = None
    url_env: str | None = None
    url_file: Path | None = None


class SearchSection(Secret):
    """How moments are kept to be found by meaning."""

    every_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    endpoint: str | None = None
    model: str = ""
    caption: str = Field(default="", max_length=2000)
    key: str | None = None
    key_env: str | None = None
    key_file: Path | None = None

    def settings(self) -> SearchSettings:
        """As the server knows it. Raises `InputError`."""
        key = self.read("key") if self.key or self.key_env or self.key_file else None
        return SearchSettings(self.every_s, self.share, self.endpoint, key, self.model, self.caption)


class MqttSection(Secret):
    """A broker that is told what happens, such as that of Home Assistant."""

    url: str | None = None
    url_env: str | None = None
    url_file: Path | None = None
    prefix: str = "onlooker"
    node: str = "server"
    discovery: str = "homeassistant"
    """Empty: nothing is announced."""
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    picture_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    alert_s: Above0 = 30.0

    def settings(self) -> MqttSettings:
        """As the server knows it. Raises `InputError`, also when a certificate cannot be read."""
        more = self.model_dump(exclude={"url", "url_env", "url_file", "discovery"})
        made = MqttSettings(self.read("url"), discovery=self.discovery or None, **more)
        made.check()
        return made


class QuestionSection(Section):
    """A question that is put to a source again and again."""

    name: Name
    text: str = Field(min_length=1, max_length=2000)
    every_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 60.0
    max_tokens: int | None = Field(default=None, ge=1)
    when: Literal["time", "change"] = "time"


class SourceSection(Secret):
    """Something to watch for everyone."""

    name: SourceName
    url: str | None = None
    url_env: str | None = None
    url_file: Path | None = None
    fps: Fps | None = None
    lag_s: Above0 | None = None
    bad_pictures: BadPictures = "tell"
    rules: list[dict[str, Any]] = []
    questions: list[QuestionSection] = []

    def source(self, usual: ResponsePolicy | None = None) -> Source:
        """As the server knows it; `usual` is the policy of rules that name none. Raises `InputError`."""
        rules = tuple(Rule.from_dict(rule, usual) for rule in self.rules)
        for kind, names in (
            ("rules", [rule.name for rule in rules]),
            ("questions", [one.name for one in self.questions]),
        ):
            if len(set(names)) < len(names):
                raise InputError(f"two {kind} have one name")
        questions = tuple(StandingQuestion(**one.model_dump()) for one in self.questions)
        return Source(self.name, self.read("url"), self.fps, rules, questions, self.lag_s, self.bad_pictures)


class KeySection(Secret):
    """A key of clients, with its role and limits."""

    name: Name
    key: str | None = None
    key_env: str | None = None
    key_file: Path | None = None
    role: Role = "asker"
    sessions: int | None = Field(default=None, ge=0)
    questions_per_minute: Above0 | None = None

    def as_key(self) -> Key:
        """As the server knows it. Raises `InputError`."""
        return Key(self.name, self.read("key"), self.role, self.sessions, self.questions_per_minute)
