"""Many clients push frames and ask at once: what is lost, what is dropped, how late things get, what grows.

    python -m benchmarks.server_load --clients 50 --minutes 10

starts `onlooker serve pocket` on this machine, lets every client push pictures and ask questions, lets two more than
there is room for knock in vain, ends the server under load, and prints one JSON object. Exits with 1 when a reply
was lost, something broke, or the server grew.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from onlooker.world import make_episode

PICTURES = 60
IN_FLIGHT = 3
"""Pushes a client leaves unanswered at once; if the server is later than that, the client leaves pictures out."""
QUESTIONS = ("what is there now?", "how many shapes are there?", "which shape left first?", "what colour is the star?")


@dataclass(frozen=True)
class Load:
    """How much is asked of the server."""

    clients: int = 50
    minutes: float = 10.0
    fps: float = 0.5
    """Pictures a client pushes in a second."""
    ask_every_s: float = 10.0
    memory: str = "sliding_window:window_tokens=300"
    """A memory that stays as it is, so that growth is a fault."""
    thumbnails: str = "256KiB"
    """As above: so many are full within a minute or two."""


@dataclass
class Seen:
    """What the clients saw."""

    sent: int = 0
    statuses: Counter = field(default_factory=Counter)
    broken: Counter = field(default_factory=Counter)
    """Requests without a reply, by what happened."""
    taken: int = 0
    dropped: int = 0
    shed: int = 0
    """Pictures the server left out because it had too much to do."""
    left_out: int = 0
    """Pictures clients did not send because earlier ones were unanswered."""
    lags_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    answers: int = 0
    rss: list[int] = field(default_factory=list)


async def request(
    client: httpx2.AsyncClient, seen: Seen, method: str, path: str, **more: Any
) -> httpx2.Response | None:
    """Send, and note what came of it."""
    seen.sent += 1
    try:
        reply = await client.request(method, path, **more)
    except httpx2.TransportError as error:
        seen.broken[type(error).__name__] += 1
        return None
    seen.statuses[reply.status_code] += 1
    return reply


async def visit(
    number: int, load: Load, client: httpx2.AsyncClient, seen: Seen, pictures: list[bytes], until: float
) -> None:
    """One client, from its first picture to its last."""
    chance = random.Random(number)
    opened = await request(client, seen, "POST", "/v1/streaming/sessions", json={})
    if opened is None or opened.status_code != 201:
        return
    path = f"/v1/streaming/sessions/{opened.json()['session_id']}"
    pushing: set[asyncio.Task[None]] = set()
    began = time.monotonic()
    next_push = began + chance.random() / load.fps
    next_ask = began + 2 / load.fps + chance.random() * load.ask_every_s
    asking: asyncio.Task[None] | None = None
    while (now := time.monotonic()) < until:
        if now >= next_push:
            next_push += 1 / load.fps
            if len(pushing) < IN_FLIGHT:
                picture = pictures[int((now - began) * load.fps) % len(pictures)]
                task = asyncio.create_task(push(client, seen, path, picture, now - began))
                pushing.add(task)
                task.add_done_callback(pushing.discard)
            else:
                seen.left_out += 1
        if now >= next_ask and (asking is None or asking.done()):
            next_ask = now + load.ask_every_s * (0.5 + chance.random())
            asking = asyncio.create_task(ask(client, seen, path, chance.choice(QUESTIONS)))
        await asyncio.sleep(max(0.005, min(next_push, next_ask) - time.monotonic()))
    await asyncio.gather(*pushing, *([asking] if asking else []))


async def push(client: httpx2.AsyncClient, seen: Seen, path: str, picture: bytes, pts: float) -> None:
    """One picture, and what became of it."""
    reply = await request(
        client, seen, "POST", f"{path}/frame", params={"pts": round(pts, 6), "wait": True}, content=picture,
        headers={"content-type": "image/jpeg"},
    )  # fmt: skip
    if reply is not None and reply.status_code == 202:
        seen.shed += 1
    if reply is not None and reply.status_code == 200:
        said = reply.json()
        if said["accepted"]:
            seen.taken += 1
            seen.lags_s.append(said["lag_s"])
        else:
            seen.dropped += 1


async def ask(client: httpx2.AsyncClient, seen: Seen, path: str, question: str) -> None:
    """One question, timed from this side."""
    began = time.monotonic()
    reply = await request(client, seen, "POST", f"{path}/ask", json={"question": question})
    if reply is not None and reply.status_code == 200:
        seen.answers += 1
        seen.whole_s.append(time.monotonic() - began)
        seen.first_s.append(reply.json()["timing"]["first_token_s"])


async def watch(process: int, seen: Seen, until: float) -> None:
    """The server's memory, once a second."""
    while time.monotonic() < until:
        seen.rss.append(rss_of(process))
        await asyncio.sleep(1.0)


def rss_of(process: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def run(load: Load, url: str, process: subprocess.Popen) -> dict[str, Any]:
    """All clients at once; the facts."""
    seen, refused = Seen(), Seen()
    pictures = [frame.jpeg() for frame in make_episode(7, "test", duration_s=float(PICTURES)).frames(fps=1.0)]
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=120.0, limits=limits) as client:
        await until_ready(client)
        until = time.monotonic() + 60 * load.minutes
        visits = [visit(number, load, client, seen, pictures, until) for number in range(load.clients)]
        tasks = [asyncio.create_task(one) for one in visits]
        tasks.append(asyncio.create_task(watch(process.pid, seen, until)))
        await asyncio.sleep(min(5.0, 30 * load.minutes))
        for _ in range(2):  # there is no room for these
            await request(client, refused, "POST", "/v1/streaming/sessions", json={})
        await asyncio.gather(*tasks)
        last = [asyncio.create_task(ask(client, seen, path, QUESTIONS[0])) for path in await sessions(client)]
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        await asyncio.gather(*last)
    code = await asyncio.to_thread(process.wait, 60)
    return facts(load, seen, refused, code)


async def sessions(client: httpx2.AsyncClient) -> list[str]:
    """The paths of some open sessions."""
    listed = (await client.get("/v1/streaming/sessions")).json()["sessions"]
    return [f"/v1/streaming/sessions/{one['session_id']}" for one in listed[:8] if one["frames"]]


async def until_ready(client: httpx2.AsyncClient) -> None:
    """Wait for the model."""
    for _ in range(600):
        with contextlib.suppress(httpx2.TransportError):
            if (await client.get("/readyz")).status_code == 200:
                return
        await asyncio.sleep(0.2)
    raise SystemExit("the server does not become ready")


def facts(load: Load, seen: Seen, refused: Seen, code: int) -> dict[str, Any]:
    """What happened, in numbers."""
    statuses = {str(status): count for status, count in sorted(seen.statuses.items())}
    # The first half is warm-up: memories, event logs and albums fill, allocators settle.
    early, late = seen.rss[len(seen.rss) // 2 :][:30], seen.rss[-30:]
    growth = statistics.median(late) / statistics.median(early) - 1 if late else 0.0
    return {
        "clients": load.clients,
        "minutes": load.minutes,
        "fps_pushed": load.fps,
        "cores": os.cpu_count(),
        "requests": seen.sent,
        "replies": sum(seen.statuses.values()),
        "lost_replies": sum(seen.broken.values()),
        "lost_by": dict(seen.broken),
        "statuses": statuses,
        "server_errors": sum(count for status, count in seen.statuses.items() if status >= 500 and status != 503),
        "frames_taken": seen.taken,
        "frames_dropped": seen.dropped,
        "frames_shed": seen.shed,
        "frames_left_out_by_clients": seen.left_out,
        "lag_s": quantiles(seen.lags_s),
        "answers": seen.answers,
        "first_token_s": quantiles(seen.first_s),
        "answer_s": quantiles(seen.whole_s),
        "refused_when_full": dict(refused.statuses),
        "rss_mb": {"early": round(statistics.median(early) / 2**20), "late": round(statistics.median(late) / 2**20)},
        "rss_mb_by_minute": [round(held / 2**20) for held in seen.rss[::60]],
        "rss_growth": round(growth, 4),
        "exit_code_after_sigterm": code,
    }


def quantiles(values: list[float]) -> dict[str, float] | None:
    """p50, p95, p99 and the largest."""
    if not values:
        return None
    ordered = sorted(values)
    named = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 95, 99)}
    return {name: round(value, 3) for name, value in (named | {"max": ordered[-1]}).items()}


def serve(load: Load, log: Path) -> tuple[str, subprocess.Popen]:
    """A server with room for exactly these clients."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "onlooker", "serve", "pocket", "--port", str(port), "--memory", load.memory,
        "--thumbnails", load.thumbnails, "--max-sessions", str(load.clients), "--device", "cpu",
    ]  # fmt: skip
    with log.open("w") as errors:
        return f"http://127.0.0.1:{port}", subprocess.Popen(command, stderr=errors)


def measure(load: Load, log: Path) -> dict[str, Any]:
    """Start a server, load it, end it; the facts."""
    url, process = serve(load, log)
    try:
        return asyncio.run(run(load, url, process))
    finally:
        process.kill()
        process.wait()


def is_sound(found: dict[str, Any], most_growth: float = 0.05) -> bool:
    """Whether nothing was lost, broke or grew."""
    full = set(found["refused_when_full"]) == {429}
    whole = found["lost_replies"] == 0 and found["server_errors"] == 0 and found["exit_code_after_sigterm"] == 0
    return whole and full and found["rss_growth"] <= most_growth


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=Load.clients)
    parser.add_argument("--minutes", type=float, default=Load.minutes)
    parser.add_argument("--fps", type=float, default=Load.fps)
    parser.add_argument("--ask-every", type=float, default=Load.ask_every_s)
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="where the server's log goes")
    given = parser.parse_args()
    found = measure(Load(given.clients, given.minutes, given.fps, given.ask_every), given.log)
    print(json.dumps(found, indent=2))
    sys.exit(0 if is_sound(found) else 1)


if __name__ == "__main__":
    main()
