"""The configuration file: everything the command line can say and more, checked as a whole, one line a fault."""

import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from onlooker.core import registry
from onlooker.core.errors import InputError, OnlookerError
from onlooker.core.kinds import defaults
from onlooker.core.sizes import num_bytes
from onlooker.kvstore.tiers import store_settings
from onlooker.models import short_name
from onlooker.server.config_sections import (
    DatabaseSection,
    HookSection,
    KeySection,
    LimitsSection,
    ModelSection,
    MqttSection,
    RetentionSection,
    SearchSection,
    ServerSection,
    SLOSection,
    SourceSection,
    WebhookSection,
)
from onlooker.server.database import Retention
from onlooker.server.dialects import Postgres
from onlooker.server.settings import Limits, ServerSettings
from onlooker.server.webhooks import check_url, read_secret, signing_key


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
    mqtt: MqttSection | None = None
    database: DatabaseSection | None = None
    search: SearchSection = SearchSection()
    sources: list[SourceSection] = []
    keys: list[KeySection] = []

    def engine_settings(self) -> dict[str, Any]:
        """The arguments of `Engine`, with every method made. Raises `InputError` for one that is unknown."""
        one = self.model
        made: dict[str, Any] = {kind: registry.make(kind, getattr(one, kind)) for kind in defaults()}
        budgets = {"device_budget_bytes": one.device_budget, "host_budget_bytes": one.host_budget}
        sizes = {name: None if size is None else num_bytes(size) for name, size in budgets.items()}
        store_settings(one.kv, **sizes, disk=one.disk)
        return made | sizes | {"kv": one.kv, "disk": one.disk, "arithmetic": one.arithmetic}

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
            mqtt=self.mqtt and self.mqtt.settings(),
            database=self.database and self._database(),
            search=self.search.settings(),
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

    def _database(self) -> str:
        assert self.database is not None, "asked where there is one"
        url = self.database.read("url")
        Postgres(url)
        return url

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
        checks += [("mqtt", self.mqtt.settings)] if self.mqtt else []
        checks += [("database", self._database)] if self.database else []
        checks += [("search", self.search.settings)]
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
