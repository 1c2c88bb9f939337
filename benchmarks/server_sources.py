"""Many slow cameras on a small machine: whether all replies come, memory stays flat and every metric is right.

    python -m benchmarks.server_sources --sources 50 --fps 0.2 --minutes 30 --kills 20

starts as many cameras (MPEG-TS over TCP, H.264, on this machine) and `onlooker serve pocket` with a file that names
them, asks one after another all the time, kills and restarts the first camera so often, compares what `/metrics` says
of every source with what its camera did, and prints one JSON object (`--out FILE` adds it there). Exits with 1 when a
reply was lost, memory grew, or a metric was wrong.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import httpx2

from onlooker.core import provenance
from onlooker.world import make_episode

GROWTH = 1.15
"""Most that the server's memory may be in the last tenth of the time, in terms of the second tenth."""
QUESTION = "how many shapes are visible now?"
RATE = 5


class Camera:
    """Sends a loop of Pocket World at its own pace to whoever connects, until it is killed."""

    def __init__(self, data: bytes, seconds: float) -> None:
        self._pieces = [data[n : n + 1316] for n in range(0, len(data), 1316)]
        self._pause_s = seconds / len(self._pieces)
        self.port = 0
        self.starts = self.connections = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen, on the port it had before if it had one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.starts += 1

    async def kill(self) -> None:
        """Hang up on everyone and listen no more."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while True:
                for piece in self._pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(self._pause_s)
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            writer.close()


def loop_of(seed: int, seconds: float = 20.0) -> bytes:
    """Pocket World as H.264 in an MPEG transport stream."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as out:
        video = out.add_stream("libx264", rate=RATE)
        video.width = video.height = 128
        video.pix_fmt = "yuv420p"
        video.options = {"tune": "zerolatency", "g": str(RATE), "preset": "ultrafast"}
        for frame in make_episode(seed, "test", duration_s=seconds).frames(fps=RATE):
            out.mux(video.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))
        out.mux(video.encode())
    return file.getvalue()


def config_of(args: argparse.Namespace, cameras: list[Camera], port: int, state: str) -> str:
    """The configuration file of the server."""
    head = f"""
[model]
name = "pocket"
device = "cpu"
memory = "sliding_window:window_tokens=300"
[server]
port = {port}
fps = {args.fps}
state = "{state}"
log = "json"
[limits]
thumbnails = "64KiB"
[slo]
frame_lag_s = {max(2.0, 1 / args.fps)}
first_token_s = 30
"""
    return head + "".join(
        f'[[sources]]\nname = "cam{n}"\nurl = "tcp://127.0.0.1:{camera.port}"\n' for n, camera in enumerate(cameras)
    )


def resident_bytes(pid: int) -> int:
    """Memory that a process holds now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def ask_all(client: httpx2.AsyncClient, names: list[str], until: float, replies: Counter) -> None:
    """Ask one source after another; every question must end in a reply."""
    chance = random.Random(3)
    while time.monotonic() < until:
        name = chance.choice(names)
        try:
            reply = await client.post(f"/v1/streaming/sessions/{name}/ask", json={"question": QUESTION})
        except httpx2.TransportError as error:
            replies[f"lost: {type(error).__name__}"] += 1
            continue
        replies[str(reply.status_code)] += 1
        await asyncio.sleep(1.0)


async def kill_again(camera: Camera, kills: int, seconds: float) -> None:
    """Kill a camera and start it again, so many times in so many seconds."""
    for _ in range(kills):
        await asyncio.sleep(seconds / (kills + 1) / 2)
        await camera.kill()
        await asyncio.sleep(seconds / (kills + 1) / 2)
        await camera.start()


def figure(text: str, name: str, source: str) -> float | None:
    """A figure of a source in Prometheus' text."""
    found = re.search(rf'^{name}{{source="{source}"}} ([0-9.e+-]+)$', text, re.M)
    return float(found[1]) if found else None


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run it all; what was found."""
    loops = [loop_of(seed) for seed in range(min(5, args.sources))]
    cameras = [Camera(loops[n % len(loops)], 20.0) for n in range(args.sources)]
    for camera in cameras:
        await camera.start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "onlooker.toml"
        file.write_text(config_of(args, cameras, port, f"{folder}/state"))
        with (Path(folder) / "log").open("wb") as log:
            words = [sys.executable, "-m", "onlooker", "serve", "--config", str(file)]
            server = await asyncio.create_subprocess_exec(*words, stderr=log)
        try:
            return await _watch(args, cameras, server, port)
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.send_signal(signal.SIGTERM)
            await server.wait()
            for camera in cameras:
                await camera.kill()


async def _watch(
    args: argparse.Namespace, cameras: list[Camera], server: asyncio.subprocess.Process, port: int
) -> dict[str, Any]:
    names = [f"cam{n}" for n in range(args.sources)]
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120.0) as client:
        up_s = await _until_up(client, len(names), args.patience)
        seconds, replies, held = 60 * args.minutes, Counter(), []
        until = time.monotonic() + seconds
        before = (await client.get("/metrics")).text
        # The first camera is killed again and again; the others have to go on as if nothing were.
        works = [asyncio.create_task(ask_all(client, names[1:], until, replies))]
        works.append(asyncio.create_task(kill_again(cameras[0], args.kills, seconds)))
        while time.monotonic() < until:
            held.append(resident_bytes(server.pid))
            await asyncio.sleep(min(5.0, seconds / 40))
        await asyncio.gather(*works)
        await _until_up(client, len(names), args.patience)
        text = (await client.get("/metrics")).text
    frames = sum(float(one) for one in re.findall(r"^onlooker_frames_taken_total ([0-9.e+]+)$", text, re.M))
    frames -= sum(float(one) for one in re.findall(r"^onlooker_frames_taken_total ([0-9.e+]+)$", before, re.M))
    tenth = max(1, len(held) // 10)
    grown = max(held[-tenth:]) / max(held[tenth : 2 * tenth])
    wrong = [name for name in names if figure(text, "onlooker_source_up", name) != 1.0]
    again = {name: figure(text, "onlooker_source_reconnects_total", name) for name in names}
    wrong += [f"{name}: reconnects" for name in names[1:] if again[name] != 0]
    if args.kills and not (again[names[0]] or 0) >= args.kills * 0.9:
        wrong.append(f"{names[0]}: {again[names[0]]} reconnects after {args.kills} kills")
    lags = [figure(text, "onlooker_source_lag_seconds", name) or 0.0 for name in names]
    lost = sum(count for status, count in replies.items() if status != "200")
    return {
        "sources": args.sources,
        "fps": args.fps,
        "minutes": args.minutes,
        "kills": args.kills,
        "up_after_s": round(up_s, 1),
        "frames_taken": int(frames),
        "frames_due": int(args.sources * args.fps * seconds),
        "replies": dict(replies),
        "lost": lost,
        "memory_bytes": {"second_tenth": max(held[tenth : 2 * tenth]), "last_tenth": max(held[-tenth:])},
        "grown": round(grown, 3),
        "reconnects_of_killed": again[names[0]],
        "lag_p95_s": {"median": sorted(lags)[len(lags) // 2], "worst": max(lags)},
        "wrong_metrics": wrong,
        "ok": not lost and not wrong and grown <= GROWTH,
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


async def _until_up(client: httpx2.AsyncClient, count: int, patience_s: float) -> float:
    began = time.monotonic()
    while time.monotonic() - began < patience_s:
        with contextlib.suppress(httpx2.TransportError):
            reply = await client.get("/v1/streaming/sources")
            if reply.status_code == 200:
                states = [one["state"] for one in reply.json()["sources"]]
                if states.count("live") == count:
                    return time.monotonic() - began
        await asyncio.sleep(0.5)
    raise SystemExit(f"not all of {count} sources came up within {patience_s:g} s")


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=50)
    parser.add_argument("--fps", type=float, default=0.2)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--patience", type=float, default=600.0, help="seconds until all sources must be up")
    parser.add_argument("--out", type=Path, help="file that the row is added to, whether all is well or not")
    args = parser.parse_args()
    found = asyncio.run(measure(args))
    print(json.dumps(found, indent=2))
    if args.out is not None:
        with args.out.open("a") as file:
            file.write(json.dumps({"benchmark": "server_sources"} | found) + "\n")
    if not found["ok"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
