"""The configuration file: everything the command line can say and more, checked as a whole, one line a fault."""

import os
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from onlooker.core import registry
from onlooker.core.contracts import ResponsePolicy
from onlooker.core.errors import InputError, OnlookerError
from onlooker.core.kinds import defaults
from onlooker.core.sizes import num_bytes
from onlooker.kvstore.tiers import tier_codecs
from onlooker.models import short_name
from onlooker.respond import Rule
from onlooker.server.bodies import Name
from onlooker.server.database import Retention
from onlooker.server.hooks import Hook
from onlooker.server.settings import BadPictures, Key, Limits, Role, ServerSettings, Source, StandingQuestion
from onlooker.server.webhooks import check_url, read_secret, signing_key


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


class QuestionSection(Section):
    """A question that is put to a source again and again."""

    name: Name
    text: str = Field(min_length=1, max_length=2000)
    every_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 60.0
    max_tokens: int | None = Field(default=None, ge=1)


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


class Config(BaseSettings):
    """Everything. Values come from the command line, else `ONLOOKER_SECTION__KEY` of the environment, else the file."""

    model_config = SettingsConfigDict(
        env_prefix="ONLOOKER_", env_nested_delimiter="__", extra="forbid", nested_model_default_partial_update=True
    )

    model: ModelSection = ModelSection()
    server: ServerSection = ServerSection()
    limits: LimitsSection = LimitsSection()
    slo: SLOSection = SLOSection()
    retention: RetentionSection = RetentionSection()
    webhook: WebhookSection | None = None
    webhooks: list[HookSection] = []
    sources: list[SourceSection] = []
    keys: list[KeySection] = []

    def engine_settings(self) -> dict[str, Any]:
        """The arguments of `Engine`, with every method made. Raises `InputError` for one that is unknown."""
        one = self.model
        made: dict[str, Any] = {kind: registry.make(kind, getattr(one, kind)) for kind in defaults()}
        budgets = {"device_budget_bytes": one.device_budget, "host_budget_bytes": one.host_budget}
        made |= {name: None if size is None else num_bytes(size) for name, size in budgets.items()}
        return made | {"kv": tier_codecs(one.kv) and one.kv}

    def server_settings(self, keys: tuple[str, ...] = (), worker: str = "w0") -> ServerSettings:
        """How the server is set up; `keys` are further plain keys. Raises `InputError`."""
        from dataclasses import replace

        from onlooker.server.settings import SERVED

        limits, response = self.limits, registry.make("response", self.model.response)
        return ServerSettings(
            model=short_name(self.model.name),
            host=self.server.host,
            port=self.server.port,
            keys=keys,
            named_keys=tuple(key.as_key() for key in self.keys),
            allowed_hosts=tuple(self.server.allow_host),
            proxies=tuple(self.server.proxy),
            snapshots=self.server.snapshots,
            state=self.server.state,
            retention=Retention(
                self.retention.days,
                num_bytes(self.retention.max_bytes),
                self.retention.clip_s,
                self.retention.memory_every_s,
                num_bytes(self.retention.memory_bytes),
            ),
            keep_sessions=self.retention.sessions,
            sources=tuple(source.source(response) for source in self.sources),
            response=response,
            source_fps=self.server.fps,
            webhook=self._webhook(),
            hooks=tuple(one.hook() for one in self.webhooks),
            whip=self.server.whip,
            worker=worker,
            schedule=registry.make("schedule", self.model.schedule),
            slo=replace(SERVED, **self.slo.model_dump()),
            limits=Limits(
                sessions=limits.max_sessions,
                sessions_per_key=limits.max_sessions_per_key,
                memory_bytes=num_bytes(limits.max_memory),
                thumbnail_bytes=num_bytes(limits.thumbnails),
                idle_s=limits.idle,
            ),
        )

    def _webhook(self) -> tuple[str, str] | None:
        if self.webhook is None:
            return None
        file = self.webhook.secret_file
        secret = self.webhook.read("secret") if file is None else read_secret(file)
        signing_key(secret)
        return check_url(self.webhook.read("url")), secret

    def faults(self) -> list[str]:
        """What cannot be as it is said, beyond the types: one line each, beginning with where."""
        found = []
        try:
            usual = registry.make("response", self.model.response)
            registry.make("schedule", self.model.schedule)
        except OnlookerError as error:
            return [f"model: {_line(error)}"]
        checks: list[tuple[str, Any]] = [(f"sources.{one.name}", partial(one.source, usual)) for one in self.sources]
        checks += [(f"keys.{one.name}", one.as_key) for one in self.keys]
        checks += [(f"webhooks.{one.name}", one.hook) for one in self.webhooks]
        checks += [("webhook", self._webhook), ("model", self.engine_settings)]
        for place, check in checks:
            try:
                check()
            except OnlookerError as error:
                found.append(f"{place}: {_line(error)}")
        names = [source.name for source in self.sources]
        found += [
            f"sources.{name}: two sources have one name" for name in sorted({n for n in names if names.count(n) > 1})
        ]
        return found


class Faulty(InputError):
    """A configuration with faults; `faults` has one line for each."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        more = f" (and {len(faults) - 1} more: onlooker config check FILE)" if len(faults) > 1 else ""
        super().__init__("a setting is wrong", given=faults[0] + more, do="see docs/serving.md, or --help")


def read_config(path: Path | None, overrides: Mapping[str, Any] | None = None, text: str | None = None) -> Config:
    """The configuration of a file (or of its `text`), of the environment and of `overrides`, which come first.

    Raises `Faulty`, with one line for every fault.
    """
    data, overrides = _parsed(path, text), dict(overrides or {})
    if isinstance(data.get("sources"), list) and "sources" in overrides:  # the command line names further ones
        overrides["sources"] = [*data["sources"], *overrides["sources"]]

    class FromFile(Config):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, data)

    try:
        config = FromFile(**overrides)
    except SettingsError as error:
        raise Faulty([f"environment: {error}"]) from None
    except ValidationError as error:
        raise Faulty([_fault(one, data) for one in error.errors()]) from None
    if faults := config.faults():
        raise Faulty(faults)
    return config


def _parsed(path: Path | None, text: str | None) -> dict[str, Any]:
    try:
        if text is None:
            text = "" if path is None else path.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError as error:
        raise Faulty([f"{path}: it cannot be read ({error.strerror})"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Faulty([f"{path}: this is not TOML: {error}"]) from None


def _fault(error: Any, data: dict[str, Any]) -> str:
    """One fault of the types as a line: where, what, and what was given unless it may be a secret."""
    place: list[str] = []
    here: Any = data
    for step in error["loc"]:
        try:
            here = here[step]
        except (KeyError, IndexError, TypeError):
            here = None
        name = here.get("name") if isinstance(here, dict) and isinstance(step, int) else None
        place.append(str(name or step))
    what = "there is no such key" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
    scalar = error["type"] not in ("missing", "extra_forbidden") and not {"url", "key"} & set(map(str, error["loc"]))
    given = f"; given: {str(error['input'])[:80]!r}" if scalar else ""
    return f"{'.'.join(place)}: {what}{given}"


def _line(error: OnlookerError) -> str:
    given = f"; given: {error.given}" if error.given else ""
    return f"{error.what}{given}"
