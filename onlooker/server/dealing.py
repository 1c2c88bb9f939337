"""Sources dealt out among workers, and what each worker is told: now, and when the configuration changes."""

import asyncio
import contextlib
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomlkit

from onlooker.core import registry
from onlooker.core.errors import OnlookerError
from onlooker.respond import Rule
from onlooker.server import placement
from onlooker.server.config import Config, Faulty
from onlooker.server.config_file import ConfigFile
from onlooker.server.refusals import Refusal
from onlooker.server.settings import ServerSettings, Source
from onlooker.server.workers import Place

STATUS = {"looks", "alerts", "probability", "highest", "score", "counts_from", "said", "said_s", "scores"}
"""What a list of rules tells beside their settings."""


class Dealing:
    """What each worker is told, as a configuration file in a private folder: a command line is for everyone to read."""

    def __init__(self, folder: Path, config: Config, settings: ServerSettings, file: ConfigFile | None) -> None:
        self._folder, self._config, self.settings, self.file = folder, config, settings, file
        devices = config.server.devices
        self.places = [Place(n, device, settings.sources[n :: len(devices)]) for n, device in enumerate(devices)]

    def source(self, name: str) -> Source | None:
        """What is watched under a name."""
        return next((one for one in self.settings.sources if one.name == name), None)

    async def reload(self) -> dict[str, Any]:
        """Read the file again; each worker is told what is its own. A source stays with the worker that it has.

        Raises `Refusal`: 409 without a file, 422 when it is wrong; then nothing is changed.
        """
        if self.file is None:
            raise Refusal(409, "no_config", "this server was started without a configuration file (--config FILE)")
        try:
            wanted = await asyncio.to_thread(self.file.read)
            settings = wanted.server_settings(await asyncio.to_thread(self.file.keys, wanted))
        except Faulty as error:
            raise Refusal(422, "invalid_config", "; ".join(error.faults)[:4000]) from error
        except OnlookerError as error:
            raise Refusal(422, "invalid_config", str(error)) from error
        needs_restart = self.file.needs_restart(wanted)
        applied = self._deal(settings.sources)
        # A worker that is started anew meanwhile is like the others: what counts from the next start stays as it was.
        kept = {"model": self._config.model, "slo": self._config.slo}
        self._config, self.settings, self.file.config = wanted.model_copy(update=kept), settings, wanted
        for place in self.places:
            await asyncio.to_thread(self.watch, place)
        return {"applied": applied, "needs_restart": needs_restart}

    def watch(self, place: Place) -> None:
        """Let a worker know what is its own now: its file is written, and one that runs reads it again."""
        self._write(place)
        if place.process is not None and place.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                place.process.send_signal(signal.SIGHUP)

    async def note_rules(self, name: str, listed: list[dict[str, Any]]) -> None:
        """A source has these rules now, as its worker lists them: they are written into the file, if there is one."""
        source = self.source(name)
        assert source is not None, "asked of a source only"
        usual = self.settings.response
        named = None if usual is None else registry.describe(usual).partition(":")[0]
        settings = [{key: one[key] for key in one.keys() - STATUS if one[key] is not None} for one in listed]
        for one in settings:  # the usual policy is told by name, and may be a file, which no rule may name
            if named is not None and one.get("policy") == named:
                del one["policy"]
        source = replace(source, rules=tuple(Rule.from_dict(one, usual) for one in settings))
        sources = tuple(source if one.name == name else one for one in self.settings.sources)
        self.settings = replace(self.settings, sources=sources)
        for place in self.places:
            place.sources = tuple(source if one.name == name else one for one in place.sources)
        if self.file is not None:
            await asyncio.to_thread(self.file.write_source, name, source)
            kept = {"sources": (await asyncio.to_thread(self.file.read)).sources}
            self._config, self.file.config = (
                self._config.model_copy(update=kept),
                self.file.config.model_copy(update=kept),
            )

    def _deal(self, sources: tuple[Source, ...]) -> list[str]:
        """Give each worker its sources; what changed."""
        wanted, old = {one.name: one for one in sources}, {one.name: one for one in self.settings.sources}
        for place in self.places:
            place.sources = tuple(wanted[one.name] for one in place.sources if one.name in wanted)
        for name in wanted.keys() - old.keys():
            # Of workers that have as many, whoever is next by what they say of themselves.
            fewest = min(self.places, key=lambda place: (len(place.sources), placement.rank(place.state)))
            fewest.sources = (*fewest.sources, wanted[name])
        changed = [f"sources.{name} removed" for name in old if name not in wanted]
        changed += [f"sources.{name} added" for name in wanted if name not in old]
        return changed + [f"sources.{name} changed" for name in wanted if name in old and wanted[name] != old[name]]

    def command(self, place: Place) -> list[str]:
        """The arguments of a worker, whose file is written."""
        self._write(place)
        return ["serve", "--config", str(self._file(place)), "--worker", place.name, "--port", str(place.port)]

    def _file(self, place: Place) -> Path:
        return self._folder / f"{place.number}.toml"

    def _write(self, place: Place) -> None:
        told = self._config.model_dump(mode="json", exclude_none=True)
        addresses = {source.name: source.url for source in self.settings.sources}
        mine = {source.name for source in place.sources}
        told["sources"] = [
            {name: value for name, value in one.items() if name not in ("url_env", "url_file")}
            | {"url": addresses[one["name"]]}
            for one in told["sources"]
            if one["name"] in mine
        ]
        texts = {key.name: key.text for key in self.settings.named_keys}
        told["keys"] = [
            {name: value for name, value in one.items() if name not in ("key_env", "key_file")}
            | {"key": texts[one["name"]]}
            for one in told["keys"]
        ]
        if self.settings.webhook is not None:
            told["webhook"] = dict(zip(("url", "secret"), self.settings.webhook, strict=True))
        if self.settings.mqtt is not None:  # each worker is a client of its own
            kept = {name: value for name, value in told["mqtt"].items() if name not in ("url_env", "url_file")}
            told["mqtt"] = kept | {"url": self.settings.mqtt.url, "node": f"{self.settings.mqtt.node}_{place.number}"}
        if self.settings.database is not None:
            told["database"] = {"url": self.settings.database}
        if self.settings.search.key is not None:
            told["search"] |= {"key": self.settings.search.key}
            told["search"] = {name: one for name, one in told["search"].items() if name not in ("key_env", "key_file")}
        told["server"] |= {"host": "127.0.0.1", "proxy": ["127.0.0.1"], "log": "json", "devices": []}
        told["model"]["device"] = place.device
        file = self._file(place)
        file.touch(mode=0o600)
        file.write_text(tomlkit.dumps(told), encoding="utf-8")
