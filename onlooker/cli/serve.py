"""onlooker serve: streams and questions over the network, and a page to try them."""

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from onlooker.cli import alerts, options
from onlooker.cli.app import app
from onlooker.cli.output import note
from onlooker.core.errors import InputError
from onlooker.core.kinds import defaults

SERVER, SAFETY = "Server", "Safety"
KEYS = {
    **{name: f"model.{name}" for name in ("device", "dtype", "pairs", *defaults(scheduled=True))},
    **{name: f"model.{name}" for name in ("device_budget", "host_budget", "kv", "disk", "arithmetic", "response")},
    **{name: f"server.{name}" for name in ("fps", "host", "port", "log", "snapshots", "state", "api_key_file")},
    **{name: f"server.{name}" for name in ("allow_host", "proxy", "whip", "devices")},
    **{name: f"limits.{name}" for name in ("max_sessions", "max_sessions_per_key", "max_memory", "thumbnails", "idle")},
    "model": "model.name",
    "webhook": "webhook.url",
    "webhook_secret_file": "webhook.secret_file",
    "source": "sources",
}
"""Every option of `serve` and its key in a configuration file."""

ServedModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="pocket, pocket-aware, a folder, or a Hugging Face id.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file with everything below and more (docs/serving.md); options given here come first.",
        rich_help_panel=SERVER,
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="NAME=URL",
        help="Watch this for everyone; may be given again. NAME=env:VARIABLE and NAME=@FILE keep a password out of "
        "sight.",
        rich_help_panel=SERVER,
    ),
]
Response = Annotated[
    str,
    typer.Option(
        help="Policy of the rules that name none, such as sved or clock:period_s=5.", rich_help_panel=alerts.PANEL
    ),
]
Fps = Annotated[float, typer.Option(help="Frames looked at per second of each source.", rich_help_panel=SERVER)]
Host = Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)]
Port = Annotated[int, typer.Option(min=0, max=65535, rich_help_panel=SERVER)]
LogForm = Annotated[str, typer.Option(help="json, plain, or auto: plain at a terminal.", rich_help_panel=SERVER)]
SnapshotFolder = Annotated[
    Path | None, typer.Option(help="Folder for snapshots of sessions (default: none).", rich_help_panel=SERVER)
]
StateFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of the database of answers and alerts (default: none).", rich_help_panel=SERVER),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(help="Keys of clients, one a line. Or one in ONLOOKER_API_KEY.", rich_help_panel=SAFETY),
]
MaxSessions = Annotated[int, typer.Option(help="Most sessions at once.", min=1, rich_help_panel=SAFETY)]
MaxSessionsPerKey = Annotated[
    int | None,
    typer.Option(
        help="Most sessions of one key (default: all, half of them with several keys).",
        rich_help_panel=SAFETY,
        min=1,
    ),
]
Proxy = Annotated[
    list[str] | None,
    typer.Option(help="Address of a proxy whose X-Forwarded-For is believed.", rich_help_panel=SAFETY),
]
MaxMemory = Annotated[
    str,
    typer.Option("--max-memory", help="Most bytes all sessions may hold.", metavar="SIZE", rich_help_panel=SAFETY),
]
Thumbnails = Annotated[
    str, typer.Option(help="Bytes of small pictures a session keeps.", metavar="SIZE", rich_help_panel=SAFETY)
]
Idle = Annotated[
    float, typer.Option(help="Seconds after which an unused session is closed.", min=1.0, rich_help_panel=SAFETY)
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(help="Host or network clients may name though it is not public.", rich_help_panel=SAFETY),
]
Whip = Annotated[
    bool, typer.Option("--whip", help="Let clients publish over WebRTC (opens UDP ports).", rich_help_panel=SERVER)
]
Devices = Annotated[
    str | None,
    typer.Option(help="One worker process per device, such as cuda:0,cuda:1.", rich_help_panel=SERVER),
]
Worker = Annotated[str, typer.Option(help="First part of session ids.", rich_help_panel=SERVER, hidden=True)]


@app.command()
@options.takes_methods(served=True, scheduled=True)
def serve(
    context: typer.Context,
    model: ServedModel = "pocket-aware",
    config: Config = None,
    source: Sources = None,
    fps: Fps = 1.0,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    log: LogForm = "auto",
    snapshots: SnapshotFolder = None,
    state: StateFolder = None,
    api_key_file: ApiKeyFile = None,
    max_sessions: MaxSessions = 64,
    max_sessions_per_key: MaxSessionsPerKey = None,
    proxy: Proxy = None,
    max_memory: MaxMemory = "8GiB",
    thumbnails: Thumbnails = "4MiB",
    idle: Idle = 600.0,
    allow_host: AllowHost = None,
    whip: Whip = False,
    devices: Devices = None,
    worker: Worker = "w0",
    webhook: alerts.WebhookUrl = None,
    webhook_secret_file: alerts.SecretFile = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    pairs: options.Pairs = None,
    methods: Any = None,
    response: Response = "threshold",
    device_budget: options.DeviceBudget = None,
    host_budget: options.HostBudget = None,
    kv: options.KV = "",
    disk: options.Disk = "",
    arithmetic: options.Arithmetic = "model",
) -> None:
    """Serve MODEL: sessions, OpenAI's API and a page at http://127.0.0.1:8000.

    Example: onlooker serve pocket --source demo=synthetic

    Without a key only this machine may connect. docs/serving.md describes the API.
    """
    try:
        from onlooker.server.config import read_config
        from onlooker.server.config_file import ConfigFile
        from onlooker.server.logs import start_logging
        from onlooker.server.serve import route
        from onlooker.server.serve import serve as run
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    from onlooker import models
    from onlooker.engine import Engine

    overrides = _said(context)
    file = None if config is None else ConfigFile(config, overrides, read_keys)
    wanted = read_config(None, overrides) if file is None else file.config
    keys = read_keys(wanted.server.api_key_file)
    settings, engine = wanted.server_settings(keys, worker), wanted.engine_settings()
    _check_packages(wanted.server.whip)
    name, there = wanted.model.name, f"http://{settings.host}:{settings.port}"
    models.check_name(name)
    _check_address(settings.host, settings.port)
    start_logging(as_json=None if wanted.server.log == "auto" else wanted.server.log == "json")
    note(f"loading {name}")
    if wanted.server.devices:
        note(f"the workers' streams will be at {there}")
        route(settings, wanted, file)
        return
    run(
        settings,
        lambda: Engine.from_pretrained(
            name, dtype=wanted.model.dtype, device=wanted.model.device, pairs=wanted.model.pairs, **engine
        ),
        on_ready=lambda: note(f"serving {name} at {there}"),
        config=file,
    )


def _check_packages(whip: bool) -> None:
    """Raise `InputError` when what was asked for needs an extra that is not installed."""
    if whip:
        try:
            import aiortc  # noqa: F401
        except ModuleNotFoundError as error:
            raise _missing(error) from error
    if any(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}ENDPOINT") for name in ("", "TRACES_")):
        try:
            import opentelemetry.exporter.otlp.proto.http
            import opentelemetry.sdk  # noqa: F401
        except ModuleNotFoundError as error:
            do = "pip install 'onlooker[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT"
            raise InputError("traces need packages that are not installed", given=str(error.name), do=do) from error


def _missing(error: ModuleNotFoundError) -> InputError:
    return InputError(
        "serving needs packages that are not installed", given=error.name, do="pip install 'onlooker[serve,webrtc]'"
    )


def _said(context: typer.Context) -> dict[str, Any]:
    """What the command line says, by section and key; what it leaves out is not there."""
    said: dict[str, Any] = {}
    for name, key in KEYS.items():
        given = context.get_parameter_source(name)
        if given is None or given.name != "COMMANDLINE":
            continue
        value = context.params[name]
        if name == "source":
            value = [_named(text) for text in value]
        elif name == "devices":
            value = [one.strip() for one in value.split(",") if one.strip()]
        section, _, field = key.partition(".")
        said = said | ({section: said.get(section, {}) | {field: value}} if field else {section: value})
    return said


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


def _named(text: str) -> dict[str, str]:
    """A source as the command line names it, as the configuration file has it."""
    name, equals, url = text.partition("=")
    if not equals or not url or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", name):
        raise InputError(
            "a source is NAME=URL, with a name of one word",
            given=re.sub(r"(?<=://)[^/\s@]+@", "***@", text),
            do="for example demo=synthetic or door=rtsp://cam/1",
        )
    if url.startswith("env:"):
        return {"name": name, "url_env": url.removeprefix("env:")}
    if url.startswith("@"):
        return {"name": name, "url_file": url.removeprefix("@")}
    if re.search(r"://[^/\s@]+:[^/\s@]+@", url):
        note(f"the password of {name} can be read by everyone on this machine; use --source {name}=env:VARIABLE")
    return {"name": name, "url": url}


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
