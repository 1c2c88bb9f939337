"""onlooker search: what the server's sources showed and what was said, found again by its words."""

import json
import os
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.output import clock, emit, plain
from onlooker.core.errors import InputError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.command()
def search(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="WORDS", help="All of them; the last may be cut.")
    ] = None,
    state: Annotated[
        Path, typer.Option(metavar="FOLDER", help="What serve --state was given.", show_default=False)
    ] = Path(),
    database_url: Annotated[
        str | None,
        typer.Option("--database", metavar="URL", help="PostgreSQL in place of it; env:VARIABLE hides a password."),
    ] = None,
    meaning: Annotated[
        bool, typer.Option("--meaning", help="Moments that look like those about which it was said, best first.")
    ] = False,
    source: Annotated[str | None, typer.Option(help="Of this source only.")] = None,
    kind: Annotated[str | None, typer.Option(help="answer, alert, source, rules, note or quality.")] = None,
    since: Annotated[str | None, typer.Option(help="Not older than that, such as 90s, 30m, 24h or 7d.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Most events shown.")] = 20,
    export: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Write all of them: jsonl, or vtt (of one --source).")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Search the answers, alerts and states of sources that a server keeps.

    Example: onlooker search red truck --state /var/lib/onlooker --since 24h

    The server may be running or not. Without WORDS the newest events are shown.
    """
    try:
        from onlooker.server.database import KINDS, Database, Wanted
        from onlooker.server.history import as_vtt
    except ModuleNotFoundError as error:
        raise InputError(
            "the server's packages are not installed", given=error.name, do="pip install 'onlooker[serve]'"
        ) from error
    if kind is not None and kind not in KINDS:
        raise InputError("there is no such kind of event", given=kind, do=", ".join(KINDS))
    if export not in (None, "jsonl", "vtt") or (export == "vtt" and source is None):
        raise InputError(
            "events are exported as jsonl, or one source's as vtt", given=export, do="--export vtt --source NAME"
        )
    from_wall = None if since is None else time.time() - _seconds(since)
    wanted = Wanted(" ".join(words or ()), source, kind, from_wall, limit=limit)
    if database_url is not None and database_url.startswith("env:"):
        database_url = os.environ.get(database_url.removeprefix("env:"), "")
    database = Database(state, url=database_url, writes=False)
    try:
        if meaning:
            moments = _by_meaning(database, wanted)
            if as_json:
                emit({"events": moments})
            else:
                for one in moments:
                    print(_moment_line(one))
        elif export == "vtt":
            for line in as_vtt(database.all(wanted)):
                print(line, end="")
        elif export == "jsonl":
            for event in database.all(wanted):
                print(json.dumps(event))
        elif as_json:
            emit({"events": database.find(wanted)})
        else:
            for event in reversed(database.find(wanted)):
                print(_line(event))
    finally:
        database.close()


def _by_meaning(database: Any, wanted: Any) -> list[dict]:
    from onlooker.server.moments import UNSAID, Moments

    moments = Moments(database)
    space = moments.newest_space()
    if space is None:
        raise InputError("no moments are kept there", do="let the server run for a while, with search.every_s above 0")
    if not space.startswith("own "):
        do = "ask the server: GET /v1/search?by=meaning&q=..."
        raise InputError("the vectors there are an endpoint's", given=space, do=do)
    seeds = moments.said(wanted, space)
    if not seeds:
        raise InputError(UNSAID, given=wanted.words or "no words", do="a standing question makes words")
    return moments.find(wanted, space, None, seeds)


def _moment_line(moment: dict) -> str:
    at = datetime.fromtimestamp(moment["wall"]).strftime("%Y-%m-%d %H:%M:%S")
    return plain(f"{moment['score']:.2f}  {at} ({clock(moment['time_s'])})  {moment['stream']}")


def _line(event: dict) -> str:
    moment = datetime.fromtimestamp(event["seen_wall"] or event["wall"]).strftime("%Y-%m-%d %H:%M:%S")
    at = "" if event["time_s"] is None else f" ({clock(event['time_s'])})"
    return plain(f"{moment}{at}  {event['stream']}  {event['kind']}: " + " | ".join(event["text"].splitlines()))


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not found:
        raise InputError("a time back is a number and a unit", given=text, do="for example 90s, 30m, 24h or 7d")
    return float(found[1]) * UNITS[found[2]]
