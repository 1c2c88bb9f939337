"""onlooker serve: streams and questions over the network, and a page to try them."""

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onlooker.cli import alerts, options
from onlooker.cli.app import app
from onlooker.cli.output import note
from onlooker.core.errors import InputError

if TYPE_CHECKING:
    from onlooker.server.workers import Place

SERVER, SAFETY = "Server", "Safety"
MEMORY = "rekv:first=1,score=shares,max_parked=28800"
"""Eight hours at a frame a second; a server must not grow for ever."""


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="pocket, pocket-aware, a folder, or a Hugging Face id.")
    ] = "pocket-aware",
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source", metavar="NAME=URL", help="Watch this for everyone; may be given again.", rich_help_panel=SERVER
        ),
    ] = None,
    fps: Annotated[
        float, typer.Option(help="Frames looked at per second of each source.", rich_help_panel=SERVER)
    ] = 1.0,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, rich_help_panel=SERVER)] = 8000,
    log: Annotated[
        str, typer.Option(help="json, plain, or auto: plain at a terminal.", rich_help_panel=SERVER)
    ] = "auto",
    snapshots: Annotated[
        Path | None, typer.Option(help="Folder for snapshots of sessions (default: none).", rich_help_panel=SERVER)
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Keys of clients, one a line. Or one in ONLOOKER_API_KEY.", rich_help_panel=SAFETY),
    ] = None,
    max_sessions: Annotated[int, typer.Option(help="Most sessions at once.", min=1, rich_help_panel=SAFETY)] = 64,
    max_sessions_per_key: Annotated[
        int | None,
        typer.Option(
            help="Most sessions of one key (default: all, half of them with several keys).",
            rich_help_panel=SAFETY,
            min=1,
        ),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address of a proxy whose X-Forwarded-For is believed.", rich_help_panel=SAFETY),
    ] = None,
    max_memory: Annotated[
        str,
        typer.Option("--max-memory", help="Most bytes all sessions may hold.", metavar="SIZE", rich_help_panel=SAFETY),
    ] = "8GiB",
    thumbnails: Annotated[
        str, typer.Option(help="Bytes of small pictures a session keeps.", metavar="SIZE", rich_help_panel=SAFETY)
    ] = "4MiB",
    idle: Annotated[
        float, typer.Option(help="Seconds after which an unused session is closed.", min=1.0, rich_help_panel=SAFETY)
    ] = 600.0,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Host or network clients may name though it is not public.", rich_help_panel=SAFETY),
    ] = None,
    whip: Annotated[
        bool, typer.Option("--whip", help="Let clients publish over WebRTC (opens UDP ports).", rich_help_panel=SERVER)
    ] = False,
    devices: Annotated[
        str | None,
        typer.Option(help="One worker process per device, such as cuda:0,cuda:1.", rich_help_panel=SERVER),
    ] = None,
    worker: Annotated[str, typer.Option(help="First part of session ids.", rich_help_panel=SERVER, hidden=True)] = "w0",
    webhook: alerts.WebhookUrl = None,
    webhook_secret_file: alerts.SecretFile = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    encoder: options.Encoder = options.DEFAULTS["encoder"],
    compressor: options.Compressor = options.DEFAULTS["compressor"],
    memory: options.Memory = MEMORY,
    device_budget: options.DeviceBudget = None,
    host_budget: options.HostBudget = None,
) -> None:
    """Serve MODEL: sessions, OpenAI's API and a page at http://127.0.0.1:8000.

    Example: onlooker serve pocket --source demo=synthetic

    Without a key only this machine may connect. docs/serving.md describes the API.
    """
    if log not in ("auto", "json", "plain"):
        raise InputError("logs are json, plain or auto", given=log, do="--log auto")
    engine_settings = options.engine_settings(encoder, compressor, memory, device_budget, host_budget)
    try:
        from onlooker.server.logs import start_logging
        from onlooker.server.serve import route
        from onlooker.server.serve import serve as run
        from onlooker.server.settings import Limits, ServerSettings

        if whip:
            import aiortc  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            "serving needs packages that are not installed", given=error.name, do="pip install 'onlooker[serve,webrtc]'"
        ) from error
    from onlooker import models
    from onlooker.engine import Engine

    settings = ServerSettings(
        model=Path(model).name or model,
        host=host,
        port=port,
        keys=read_keys(api_key_file),
        allowed_hosts=tuple(allow_host or ()),
        proxies=tuple(proxy or ()),
        snapshots=snapshots,
        sources=tuple(_named(text) for text in source or ()),
        source_fps=fps,
        webhook=alerts.receiver_of(webhook, webhook_secret_file),
        whip=whip,
        worker=worker,
        limits=Limits(
            sessions=max_sessions,
            sessions_per_key=max_sessions_per_key,
            memory_bytes=options.num_bytes(max_memory),
            thumbnail_bytes=options.num_bytes(thumbnails),
            idle_s=idle,
        ),
    )
    models.check_name(model)
    _check_address(host, port)
    start_logging(as_json=None if log == "auto" else log == "json")
    note(f"loading {model}")
    if devices is not None:
        own = [model, "--fps", str(fps), "--max-sessions", str(max_sessions), "--max-memory", max_memory]
        own += ["--thumbnails", thumbnails, "--idle", str(idle), "--dtype", dtype]
        own += ["--encoder", encoder, "--compressor", compressor]
        own += ["--memory", memory, "--log", "json", *(["--whip"] if whip else [])]
        for name, value in (
            ("--device-budget", device_budget),
            ("--host-budget", host_budget),
            ("--snapshots", snapshots),
            ("--api-key-file", api_key_file),
            ("--max-sessions-per-key", max_sessions_per_key),
            ("--proxy", "127.0.0.1"),
            ("--webhook", webhook),
            ("--webhook-secret-file", webhook_secret_file),
            *(("--allow-host", allowed) for allowed in allow_host or ()),
        ):
            own += [] if value is None else [name, str(value)]

        def command(place: "Place") -> list[str]:
            named = [word for name, url in place.sources for word in ("--source", f"{name}={url}")]
            there = ["--port", str(place.port), "--worker", place.name, "--device", place.device]
            return ["serve", *own, *there, *named]

        note(f"the workers' streams will be at http://{host}:{port}")
        route(settings, [one.strip() for one in devices.split(",") if one.strip()], command)
        return
    run(
        settings,
        lambda: Engine.from_pretrained(model, dtype=dtype, device=device, **engine_settings),
        on_ready=lambda: note(f"serving {model} at http://{host}:{port}"),
    )


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys of a file (one a line; lines that begin with # are notes) and of the environment."""
    keys = [os.environ["ONLOOKER_API_KEY"]] if os.environ.get("ONLOOKER_API_KEY") else []
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                "the keys cannot be read", given=str(path), do="give a text file, one key a line"
            ) from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise InputError("there is no key in the file", given=str(path), do="openssl rand -hex 24 > FILE")
        keys += found
    return tuple(dict.fromkeys(keys))


def _named(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not equals or not url or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", name):
        raise InputError(
            "a source is NAME=URL, with a name of one word",
            given=text,
            do="for example demo=synthetic or door=rtsp://cam/1",
        )
    return name, url


def _check_address(host: str, port: int) -> None:
    """Raise `InputError` unless the address can be listened at: told before a model is loaded for it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    except OSError as error:
        raise InputError(
            "the server cannot listen there",
            given=f"{host}:{port}: {error.strerror}",
            do="choose another --host or --port",
        ) from error
