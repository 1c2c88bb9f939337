"""Beyond one machine: a Ray Serve application that places workers on a cluster and routes by session.

    serve run onlooker.server.ray_app:build config=/etc/onlooker/onlooker.toml workers=2 num_gpus=1
    serve run onlooker.server.ray_app:build model=pocket workers=2 num_gpus=0 key_file=/etc/onlooker/keys

Every worker is a Ray actor with an engine and the whole server in it, wherever Ray finds the resources; the ingress is
the same router that stands before worker processes on one machine. Ray places actors and restarts them; it does not
choose who answers, because a session's memory is where its worker is: new sessions go where there are bytes and the
engine is asked least (`placement`). The sources of a worker that dies are watched by the others at once, and go on from
what they remembered where all workers have one store: a `state` folder that all machines see, and a `database`.
"""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray  # pyright: ignore[reportMissingImports] - an extra
from fastapi import FastAPI
from ray import serve  # pyright: ignore[reportMissingImports]
from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
from ray.serve import Application  # pyright: ignore[reportMissingImports]

from onlooker.core import registry
from onlooker.core.errors import InputError
from onlooker.core.kinds import defaults, of_engine
from onlooker.engine import Engine
from onlooker.models import short_name
from onlooker.server.app import create_app
from onlooker.server.config import read_config
from onlooker.server.logs import start_logging
from onlooker.server.router import create_router
from onlooker.server.serve import Server
from onlooker.server.settings import ServerSettings, Source, is_loopback
from onlooker.server.workers import Place, Workers


@ray.remote(max_concurrency=4)  # pyright: ignore[reportCallIssue] - its types do not know actors' options
class HostedWorker:
    """A server with one engine, on a thread of an actor."""

    def __init__(self, settings: ServerSettings, model: str, engine_settings: dict[str, Any]) -> None:
        start_logging(as_json=True)
        self._listener = socket.create_server((settings.host, 0))
        port = self._listener.getsockname()[1]
        make_engine: Callable[[], Engine] = lambda: Engine.from_pretrained(model, **engine_settings)  # noqa: E731
        self._server = Server(create_app(replace(settings, port=port), make_engine), settings)
        self._thread = threading.Thread(target=self._run, name="onlooker-server")
        self._thread.start()

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._listener]))

    def address(self) -> tuple[str, int]:
        """Where the router finds it."""
        host, port = self._listener.getsockname()[:2]
        return (host if is_loopback(host) else ray.util.get_node_ip_address()), port

    def wait(self) -> None:
        """Return when the server has ended."""
        self._thread.join()

    def watch(self, sources: tuple[Source, ...]) -> None:
        """These are its own from now on, beside what it watches."""
        self._server.soon(lambda service: asyncio.gather(*(service.watched.put(source) for source in sources)))

    def end(self) -> None:
        """Begin to drain."""
        self._server.handle_exit(signal.SIGTERM, None)


class RayWorkers(Workers):
    """Workers that are Ray actors; an actor that dies is placed anew, under a new name."""

    def __init__(
        self,
        places: list[Place],
        settings: ServerSettings,
        model: str,
        engine_settings: dict[str, Any],
        num_gpus: float,
    ) -> None:
        super().__init__(places, lambda place: [])
        self._settings, self._model, self._engine = settings, model, engine_settings
        self._num_gpus = num_gpus
        self._actors: dict[int, Any] = {}

    async def run_one(self, place: Place) -> str:
        mine = replace(self._settings, worker=place.name, sources=place.sources, proxies=("*",))
        if mine.mqtt is not None:  # each worker is a client of its own
            mine = replace(mine, mqtt=replace(mine.mqtt, node=f"{mine.mqtt.node}_{place.number}"))
        wanted = HostedWorker.options(  # pyright: ignore[reportAttributeAccessIssue] - Ray's decorator has no types
            name=f"onlooker-{place.name}", namespace="onlooker", num_cpus=1, num_gpus=self._num_gpus
        )
        actor = self._actors[place.number] = wanted.remote(mine, self._model, self._engine)
        try:
            place.host, place.port = await actor.address.remote()
            await actor.wait.remote()
            return "its end"
        except RayError as error:
            return type(error).__name__
        finally:
            del self._actors[place.number]
            ray.kill(actor)

    async def watch(self, place: Place) -> None:
        with contextlib.suppress(RayError):  # one that dies meanwhile has its sources moved in turn
            await self._actors[place.number].watch.remote(place.sources)

    async def end_all(self, within_s: float) -> None:
        actors = list(self._actors.values())
        with contextlib.suppress(RayError, TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(actor.end.remote() for actor in actors)), within_s)
            await asyncio.wait_for(asyncio.gather(*(actor.wait.remote() for actor in actors)), within_s)


def build(given: dict[str, str]) -> Application:
    """The application, from arguments as `serve run` takes them: `workers` (their number), `num_gpus` (of each, 0 for
    CPU), and either `config`, a configuration file that every machine can read, or what `_told` takes.

    Raises `InputError` for others.
    """
    rest = dict(given)
    workers, num_gpus = int(rest.pop("workers", 1)), float(rest.pop("num_gpus", 0))
    settings, model, engine = _of_file(Path(rest.pop("config")), rest) if "config" in rest else _told(rest)
    if rest:
        raise InputError("the application does not know an argument", given=", ".join(sorted(rest)), do="see its head")

    def make_app() -> FastAPI:
        places = [Place(number, "ray", settings.sources[number::workers]) for number in range(workers)]
        return create_router(settings, RayWorkers(places, settings, model, engine, num_gpus))

    # One router: it knows all workers. It does little, and is not the bottleneck.
    ingress = serve.deployment(serve.ingress(make_app)(), name="onlooker", num_replicas=1, max_ongoing_requests=2048)
    return ingress.bind()


def _of_file(path: Path, rest: dict[str, str]) -> tuple[ServerSettings, str, dict[str, Any]]:
    """What a configuration file says: the server's settings, the model, and what engines are made with."""
    config = read_config(path)
    keys = _keys_of(config.server.api_key_file)
    told = config.model
    device = rest.pop("device", told.device)
    engine = config.engine_settings() | {"device": device, "dtype": told.dtype, "pairs": told.pairs}
    return config.server_settings(keys), told.name, engine


def _told(rest: dict[str, str]) -> tuple[ServerSettings, str, dict[str, Any]]:
    """The same from arguments, which are taken out.

    `model`, `key_file` (needed beyond one machine), `sources` (`NAME=URL,...`), and what engines are made with: a
    method of every kind (see `core/kinds.py`), `device`, `dtype`, `kv`, `arithmetic`, `pairs` (true or false);
    `schedule` is that of each worker, `response` that of rules that name none.
    """
    model = rest.pop("model", "pocket-aware")
    file, named = rest.pop("key_file", None), rest.pop("sources", "")
    schedule = rest.pop("schedule", "oldest_first")
    response = registry.make("response", rest.pop("response", "threshold"))
    names = (*of_engine(), "device", "dtype", "kv", "arithmetic")
    engine: dict[str, Any] = defaults(served=True) | {name: rest.pop(name) for name in names if name in rest}
    if (pairs := rest.pop("pairs", None)) is not None:
        if pairs not in ("true", "false"):
            raise InputError("pairs is true or false", given=pairs, do="leave it out for what suits the model")
        engine["pairs"] = pairs == "true"
    keys = _keys_of(Path(file) if file else None)
    sources = tuple(Source(name, url) for name, _, url in (one.partition("=") for one in named.split(",") if one))
    host = "0.0.0.0" if keys else "127.0.0.1"
    name = short_name(model)
    settings = ServerSettings(model=name, host=host, keys=keys, sources=sources, schedule=schedule, response=response)
    return settings, model, engine


def _keys_of(file: Path | None) -> tuple[str, ...]:
    return () if file is None else tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
