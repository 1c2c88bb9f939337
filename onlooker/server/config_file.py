"""The file behind a running server: read again on request, written back with its comments when something changes."""

import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import AoT, Table

from onlooker.core import registry
from onlooker.core.contracts import ResponsePolicy
from onlooker.server.config import Config, read_config
from onlooker.server.settings import Source

RESTART = ("model", "slo", "search")
"""Sections that count from the next start on."""
RESTART_SERVER = ("host", "port", "log", "snapshots", "state", "whip", "devices", "proxy")


class ConfigFile:
    """A configuration file and what the command line said besides. Its methods may be called from any thread."""

    def __init__(
        self,
        path: Path,
        overrides: Mapping[str, Any],
        read_keys: Callable[[Path | None], tuple[str, ...]] = lambda file: (),
    ) -> None:
        """`read_keys` gives the plain keys of a key file and of the environment."""
        self.path, self._overrides, self._read_keys = path, overrides, read_keys
        self._lock = threading.Lock()
        self.config = self._started = read_config(path, overrides)

    def keys(self, config: Config) -> tuple[str, ...]:
        """The plain keys that a configuration names. Raises `InputError` when they cannot be read."""
        return self._read_keys(config.server.api_key_file)

    def read(self) -> Config:
        """What the file says now. Raises `Faulty`; then `config` stays what it was."""
        return read_config(self.path, self._overrides)

    def needs_restart(self, new: Config) -> list[str]:
        """Keys that differ from what was said at the start, and count from the next start on only."""
        old = self._started
        found = []
        for section in (*RESTART, "server"):
            before, after = getattr(old, section).model_dump(), getattr(new, section).model_dump()
            names = RESTART_SERVER if section == "server" else before
            found += [f"{section}.{name}" for name in names if before[name] != after[name]]
        if old.database != new.database:
            found.append("database.url")
        return found

    def write_source(self, name: str, source: Source | None, address: Mapping[str, str] | None = None) -> None:
        """Write a source as it is now, or (None) remove it; everything else in the file stays as it is written.

        `address` is where its address is to be found (`url`, `url_env` or `url_file`); None leaves what the file says.
        """
        with self._lock:
            document = tomlkit.parse(self.path.read_text(encoding="utf-8"))
            listed = document.get("sources")
            sources: AoT = listed if listed is not None else tomlkit.aot()
            place = next((n for n, one in enumerate(sources) if one.get("name") == name), None)
            if source is None:
                if place is not None:
                    del sources[place]
            else:
                table = tomlkit.table() if place is None else sources[place]
                usual = registry.make("response", self._started.model.response)
                _fill(table, source, address, usual)
                if place is None:
                    sources.append(table)
            if listed is None and len(sources):
                document["sources"] = sources
            self._replace(tomlkit.dumps(document))

    def _replace(self, text: str) -> None:
        """The whole new file or the whole old one, whatever happens in between; readable by whom it was."""
        mode = self.path.stat().st_mode & 0o777
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(mode)
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _fill(table: Table, source: Source, address: Mapping[str, str] | None, usual: ResponsePolicy) -> None:
    wanted: dict[str, Any] = {"name": source.name, "fps": source.fps, "lag_s": source.lag_s}
    if address is not None:
        wanted |= dict.fromkeys(("url", "url_env", "url_file")) | dict(address)
    wanted["bad_pictures"] = source.bad_pictures if "bad_pictures" in table or source.bad_pictures != "tell" else None
    for key, value in wanted.items():
        if value is None:
            table.pop(key, None)
        elif table.get(key) != value:
            table[key] = value
    rules = [{key: value for key, value in rule.as_dict(usual).items() if value is not None} for rule in source.rules]
    questions = [
        {"name": one.name, "text": one.text, "every_s": one.every_s}
        | ({"max_tokens": one.max_tokens} if one.max_tokens else {})
        | ({"when": one.when} if one.when != "time" else {})
        for one in source.questions
    ]
    for key, items in (("rules", rules), ("questions", questions)):
        if not items:
            table.pop(key, None)
            continue
        array = tomlkit.array().multiline(True)
        for item in items:
            row = tomlkit.inline_table()
            row.update(item)
            array.append(row)
        table[key] = array
