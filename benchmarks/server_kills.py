"""A server killed hard again and again: whether what it had said, alerts with their clips too, is found ever after.

    python -m benchmarks.server_kills --kills 50 [--python BARE/bin/python] [--out FILE]

starts two RTSP servers (GStreamer, from Debian's packages) that send Pocket World, and `onlooker serve --config` with a
file of ten lines that names them and a synthetic source. Each start is killed (SIGKILL) at a random moment, of which
some fall into its start. All events that `/v1/search` showed before a kill have to be found after the last start, and
the clip of each alert that had one has to hold what the camera sent. Prints one JSON object (`--out` adds it to a
file); exits with 1 when something is missing. `--python` runs the server with another environment's Python.
"""

import argparse
import contextlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx2

from onlooker.core import provenance
from onlooker.world import make_episode

SYSTEM_PYTHON = "/usr/bin/python3"  # the one that Debian's gi belongs to
FPS, SIZE = 5, 128
RULE = 'rules = [{ name = "shape", prompt = "say yes when you see a shape.", policy = "clock", period_s = 4 }]'
ASKED = 'questions = [{ name = "what", text = "what is there now?", every_s = 3 }]'


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def camera(folder: Path, seed: int) -> Iterator[str]:
    """An RTSP server of a process of its own; its address."""
    film, port = folder / f"{seed}.rgb", free_port()
    frames = make_episode(seed, "test", duration_s=20.0).frames(fps=FPS)
    film.write_bytes(b"".join(frame.image.tobytes() for frame in frames))
    words = [SYSTEM_PYTHON, str(Path(__file__).with_name("rtsp_film.py")), str(port), str(film)]
    process = subprocess.Popen([*words, str(SIZE), str(SIZE), str(FPS)])
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            if process.poll() is not None:
                raise SystemExit("the RTSP server did not start: apt-get install python3-gi gir1.2-gst-rtsp-server-1.0")
            time.sleep(0.1)
        yield f"rtsp://127.0.0.1:{port}/cam"
    finally:
        process.kill()
        process.wait()


def config_of(folder: Path, port: int, addresses: list[str]) -> str:
    """Ten lines that a person would write."""
    lines = ['[model]\nname = "pocket"', f'[server]\nport = {port}\nstate = "{folder}/state"']
    for name, address in zip(("door", "yard"), addresses, strict=True):
        lines.append(f'[[sources]]\nname = "{name}"\nurl = "{address}"\n{RULE}\n{ASKED}')
    lines.append('[[sources]]\nname = "demo"\nurl = "synthetic"')
    return "\n".join(lines) + "\n"


class Seen:
    """What clients were shown of the past, which must not be lost."""

    def __init__(self) -> None:
        self.events: dict[int, dict[str, Any]] = {}

    def look(self, client: httpx2.Client, **more: str) -> None:
        """Read the past that the server tells; nothing when it does not answer."""
        with contextlib.suppress(httpx2.TransportError):
            reply = client.get("/v1/export", params=more)
            if reply.status_code == 200:
                told = [json.loads(line) for line in reply.text.splitlines()]
                self.events |= {one["id"]: one for one in told if one["kind"] in ("alert", "answer")}

    @property
    def clips(self) -> list[str]:
        """Where the clips of alerts are."""
        return sorted({one["clip"] for one in self.events.values() if one["clip"]})


def pictures_of(data: bytes) -> int:
    """How many pictures a clip shows; raises where it is not whole H.264."""
    with av.open(io.BytesIO(data)) as video:
        assert video.streams.video[0].codec_context.name == "h264"
        return sum(1 for _ in video.decode(video=0))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run it all; what was found."""
    chance, seen, moments = random.Random(args.seed), Seen(), Counter()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as cameras:
        folder, port = Path(place), free_port()
        addresses = [cameras.enter_context(camera(folder, seed)) for seed in (4, 7)]
        file = folder / "onlooker.toml"
        file.write_text(config_of(folder, port, addresses))
        environment = dict(os.environ)
        if args.python != sys.executable:  # what is installed there, not this tree
            environment.pop("PYTHONPATH", None)
        words = [args.python, "-m", "onlooker", "serve", "--config", str(file)]
        check = [args.python, "-m", "onlooker", "config", "check", str(file)]
        subprocess.run(check, check=True, cwd=place, env=environment, stdout=sys.stderr)
        base = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=base, timeout=30.0) as client, args.log.open("wb") as log:
            for number in range(args.kills + 1):
                process = subprocess.Popen(words, stderr=log, cwd=place, env=environment)
                try:
                    if number == args.kills:
                        return _final(args, client, seen, moments)
                    moments[_until_killed(process, client, seen, chance.uniform(0.0, args.longest), args.longest)] += 1
                    print(f"{number + 1}: {len(seen.events)} events, {len(seen.clips)} clips", file=sys.stderr)
                finally:
                    process.kill()
                    process.wait()
    raise AssertionError("the last start is always looked at")


def _until_killed(
    process: subprocess.Popen, client: httpx2.Client, seen: Seen, after_s: float, longest_s: float
) -> str:
    """Kill the server some seconds after its cameras are up, or, for the shortest, after it was started."""
    if after_s > 0.15 * longest_s:
        _until_up(process, client)
    until = time.monotonic() + after_s
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(0.5, left))
        seen.look(client)
    process.kill()
    process.wait()
    return "running" if after_s > 0.15 * longest_s else "starting"


def _until_up(process: subprocess.Popen, client: httpx2.Client) -> list[dict[str, Any]]:
    until = time.monotonic() + 180.0
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx2.TransportError):
            sources = client.get("/v1/streaming/sources").json().get("sources", [])
            if [one["state"] for one in sources].count("live") == 3:
                return sources
        time.sleep(0.2)
    raise SystemExit(f"the server did not come up (exit code {process.poll()}); see --log")


def _final(args: argparse.Namespace, client: httpx2.Client, seen: Seen, moments: Counter) -> dict[str, Any]:
    """What the last start still has of all that was shown."""
    until = time.monotonic() + 180.0
    while time.monotonic() < until:
        with contextlib.suppress(httpx2.TransportError):
            if client.get("/readyz").status_code == 200:
                break
        time.sleep(0.2)
    before, after = dict(seen.events), Seen()
    after.look(client)
    lost = sorted(before.keys() - after.events.keys())
    changed = [number for number, one in before.items() if number in after.events]
    changed = [number for number in changed if before[number]["text"] != after.events[number]["text"]]
    words = Counter(word for one in before.values() for word in one["text"].split() if word.isalpha())
    word = words.most_common(1)[0][0]
    by_word = Seen()
    by_word.look(client, q=word)
    due = {number for number, one in before.items() if word in one["text"].split()}
    shown, broken = [], []
    for clip in seen.clips:
        try:
            shown.append(pictures_of(client.get(clip).content))
        except (av.FFmpegError, AssertionError, IndexError):
            broken.append(clip)
    kinds = Counter(one["kind"] for one in before.values())
    return {
        "kills": args.kills,
        "killed_while": dict(moments),
        "events": dict(kinds),
        "lost": len(lost),
        "changed": len(changed),
        "searched_word": word,
        "not_found_by_word": len(due - by_word.events.keys()),
        "clips": len(seen.clips),
        "clips_broken": len(broken),
        "pictures_in_a_clip": {"fewest": min(shown, default=0), "most": max(shown, default=0)},
        "ok": not lost and not changed and not broken and due <= by_word.events.keys() and bool(shown),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest", type=float, default=12.0, help="seconds that a start lives at most once it is up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--python", default=sys.executable, help="the Python that runs the server")
    parser.add_argument("--log", type=Path, default=Path("/dev/null"), help="file for what the server says")
    parser.add_argument("--out", type=Path, help="file that the row is added to, whether all is well or not")
    args = parser.parse_args()
    found = measure(args)
    print(json.dumps(found, indent=2))
    if args.out is not None:
        with args.out.open("a") as file:
            file.write(json.dumps({"benchmark": "server_kills"} | found) + "\n")
    if not found["ok"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
