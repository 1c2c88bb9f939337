"""This tree of the project against another: encode, prefill and whole steps, in turns within one run.

    git archive COMMIT onlooker | tar x -C OLD
    python -m benchmarks.paired --old OLD

`--old` may be the archive itself (`git archive -o OLD.tgz COMMIT onlooker`). With `--profile` every row also has, of
both trees, the launches of one repetition, the host's time until all of them are asked for, and the longest kernels.

One process a tree holds everything ready (the same model, random weights of the same seed, prepared steps on a GPU).
They are asked for short blocks of repetitions in turns (old new, new old, ...), so that what changes on the machine
meets both. A figure's `ratio` is the median over turns of new over old, block by block; beside it the ratio of the
fastest repetitions. The Cacher in it is the published one, the only one that older trees have.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Action = tuple[Callable[[int], Any], Callable[[int, Any], None]]
"""What makes the input of a repetition, and what is timed with it."""
COUNTS = {"encode_streams": "1,8", "prefill_streams": "1,8", "engine_streams": "1,8", "tokens": "64,196"}


def quiet(_: str) -> None:
    """No word of what is prepared."""


class Figures:
    """What one tree can be timed at. Names that trees of several ages do not share are looked for here."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from onlooker import models
        from onlooker.core import registry

        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        self.options, self.cuda = options, options.device == "cuda"
        self.wait = torch.cuda.synchronize if self.cuda else lambda: None
        load = models.random_model if options.model in models.SHAPES else models.load
        self.model = load(options.model, dtype="bfloat16" if self.cuda else "float32", device=options.device)
        self.published = "stc_published" if "stc_published" in registry.names("encoder") else "stc_cacher"
        self.actions: dict[str, Action] = {}
        self._encode()
        self._prefill()
        self._steps("dense", "full", "identity")
        self._steps("saving", f"{self.published}:interval=4,recompute_ratio=0.25", "stc_pruner")

    def _encode(self) -> None:
        """A frame of each stream encoded whole, as a refresh, and selectively."""
        from onlooker.cli import bench
        from onlooker.core import registry

        for count in self.options.encode_streams:
            method = registry.make("encoder", f"{self.published}:interval=4,recompute_ratio=0.25")
            _, made = bench._encode_actions(self.model, method, count, self.cuda, quiet)  # pyright: ignore
            for name, action in made.items():
                self.actions[f"encode {name} x{count}"] = (action.prepare, action.run)

    def _prefill(self) -> None:
        """One frame of each stream read behind a context, and forgotten again."""
        import torch

        from onlooker.engine.packing import Work
        from onlooker.engine.passes import make_passes
        from onlooker.kvstore import KVStore

        passes, spec, options = make_passes(self.model, "auto"), self.model.spec, self.options
        if self.cuda:
            sizes = {-(-c * t // 16) * 16 for c in options.prefill_streams for t in options.tokens}
            passes.prepare(sorted(sizes | {512}), quiet)
        filler = torch.randn(options.context, spec.hidden_dim, device=spec.device).to(spec.dtype) * 0.02
        for count in options.prefill_streams:
            stores = [KVStore(spec, self.model.rotary) for _ in range(count)]
            for store in stores:
                for part in filler.split(500):
                    chunk = store.begin("vision", 0.0, 0.0, *self.model.place_text(len(part)))
                    passes.run([Work(part, chunk)])
                    chunk.seal()
            for tokens in options.tokens:
                place, rows = self.model.place_text(tokens), filler[:tokens]

                def read(_: int, stores: list, rows=rows, place=place) -> None:
                    chunks = [store.begin("vision", 1.0, 1.0, *place) for store in stores]
                    passes.run([Work(rows, chunk) for chunk in chunks])
                    for chunk in chunks:
                        chunk.abort()

                self.actions[f"prefill {tokens} tokens x{count}"] = (lambda _, stores=stores: stores, read)

    def _steps(self, kind: str, encoder: str, compressor: str) -> None:
        """Whole steps of an engine through a full window, alone and beside two answers."""
        from onlooker.core.frame import Frame
        from onlooker.engine import Engine
        from onlooker.world import make_episode

        options, most = self.options, max(self.options.engine_streams, default=0)
        if not most:
            return
        clips = [[f.image for f in make_episode(seed, "test", 8).frames(fps=1.0)] for seed in range(most)]
        memory = f"sliding_window:window_tokens={options.window}"
        engine = Engine(self.model, encoder=encoder, compressor=compressor, memory=memory)
        if self.cuda:
            with engine.open() as probe:
                kept = probe.push(Frame(clips[0][0], 0.0)).tokens_kept + 16
            size = clips[0][0].shape[:2]
            engine.prepare(most_frames=most, most_tokens=most * kept + 128, picture=size, on_step=quiet)
        for count in options.engine_streams:
            sessions, clock = [engine.open() for _ in range(count)], [0]
            for asked in (0, 2):
                requests: list = []

                def ready(_: int, sessions=sessions, clock=clock, asked=asked, requests=requests) -> tuple[list, list]:
                    clock[0] += 1
                    pictures = (clips[number][clock[0] % 8] for number in range(len(sessions)))
                    frames = [
                        (one, Frame(picture, float(clock[0]))) for one, picture in zip(sessions, pictures, strict=True)
                    ]
                    requests[:] = [one for one in requests if not one.done]
                    submit = getattr(sessions[0], "submit", None) or sessions[0].put
                    while clock[0] > 1 and len(requests) < asked:
                        requests.append(submit("what is happening in the video ?"))
                    return frames, list(requests)

                def step(_: int, given: tuple[list, list]) -> None:
                    engine.advance(*given)

                beside = f" + {asked} answers" if asked else ""
                self.actions[f"streams {kind} x{count}{beside}"] = (ready, step)
            arrive, advance = self.actions[f"streams {kind} x{count}"]
            for number in range(options.fill):  # every later step forgets as much as it reads
                advance(number, arrive(number))

    def timed(self, name: str, repeats: int) -> list[float]:
        """Milliseconds of each repetition."""
        prepare, run = self.actions[name]
        spent = []
        for turn in range(repeats):
            given = prepare(turn)
            self.wait()
            began = time.perf_counter()
            run(turn, given)
            self.wait()
            spent.append((time.perf_counter() - began) * 1000)
        return spent

    def profiled(self, name: str, repeats: int = 5) -> dict[str, Any]:
        """Of one repetition: `launches` (kernels; without a GPU, operations), `device_ms` that they take, `host_ms`
        until all are asked for, and `longest`: [name, launches, microseconds] of some."""
        from torch.profiler import ProfilerActivity, profile

        prepare, run = self.actions[name]
        host = []
        for turn in range(4 * repeats):
            given = prepare(turn)
            self.wait()
            began = time.perf_counter()
            run(turn, given)
            host.append((time.perf_counter() - began) * 1000)
            self.wait()
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        with profile(activities=kinds) as found:
            for turn in range(repeats):
                run(turn, prepare(turn))
                self.wait()
        events: Any = found.events()
        spent: dict[str, list[float]] = {}
        for event in events:
            on_device = "CUDA" in str(event.device_type)
            if on_device if self.cuda else event.name.startswith("aten::"):
                own = spent.setdefault(event.name[:60], [0, 0.0])
                own[0] += 1
                own[1] += event.device_time_total if self.cuda else event.self_cpu_time_total
        longest = sorted(spent.items(), key=lambda one: -one[1][1])[: self.options.profile]
        return {
            "launches": round(sum(count for count, _ in spent.values()) / repeats, 1),
            "device_ms": round(sum(us for _, us in spent.values()) / repeats / 1000, 4),
            "host_ms": round(statistics.median(host), 4),
            "longest": [[key, round(n / repeats, 1), round(us / repeats, 1)] for key, (n, us) in longest],
        }


def serve(options: argparse.Namespace) -> None:
    """The process of one tree: a line of JSON in, a line out."""
    import torch

    import onlooker

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, prints to the error stream
    assert Path(onlooker.__file__).resolve().is_relative_to(options.worker), onlooker.__file__
    with torch.no_grad():
        figures = Figures(options)
        ready = {"ready": list(figures.actions), "torch": torch.__version__, "published": figures.published}
        print(json.dumps(ready), file=out, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                if asked["repeats"]:
                    answer = {"ms": figures.timed(asked["name"], asked["repeats"])}
                else:
                    answer = {"profile": figures.profiled(asked["name"])}
            except Exception as error:  # a figure that fails is told, and the others go on
                answer = {"error": f"{type(error).__name__}: {error}"}
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(answer), file=out, flush=True)


class Tree:
    """A tree of the project, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        # From a neutral file: the folder of a module that is run by name would come first on the path.
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(folder.resolve()), *sys.argv[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=str(folder.resolve())),
        )
        self.told = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, name: str, repeats: int) -> dict[str, Any]:
        """`ms` of the repetitions of a figure, or its `profile` if there are none, or the `error` it ended with."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"name": name, "repeats": repeats}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Ask both trees in turns until all rounds are done or the time is up; rows as they stand then."""
    began = time.perf_counter()
    room = tempfile.TemporaryDirectory()
    trees = {"old": Tree(unpacked(Path(options.old), room.name)), "new": Tree(Path(options.new))}
    names = [name for name in trees["old"].told["ready"] if name in trees["new"].told["ready"]]
    spent: dict[str, list[dict[str, list[float]]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for name in names:  # a first time that does not count
        for tree in trees.values():
            tree.ask(name, 3)
    for turn in range(options.rounds):
        for name in names:
            if name in failed or time.perf_counter() - began > options.seconds:
                continue
            order = ("old", "new") if turn % 2 == 0 else ("new", "old")
            block = {which: trees[which].ask(name, options.repeats) for which in order}
            errors = [f"{which}: {one['error']}" for which, one in block.items() if "error" in one]
            if errors:
                failed[name] = errors[0]
            else:
                spent[name].append({which: one["ms"] for which, one in block.items()})
        print(f"round {turn + 1} of {options.rounds}, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    rows: list[dict[str, Any]] = [
        row(name, blocks) if name not in failed else {"what": name, "error": failed[name]}
        for name, blocks in spent.items()
    ]
    for one in rows if options.profile else []:
        if "error" not in one:
            one["profile"] = {which: tree.ask(one["what"], 0) for which, tree in trees.items()}
    for tree in trees.values():
        tree.close()
    return rows


def unpacked(place: Path, folder: str) -> Path:
    """A tree of the project: as it is, or from an archive into a folder."""
    if place.is_dir():
        return place
    with tarfile.open(place) as archive:
        archive.extractall(folder, filter="data")
    return Path(folder)


def row(name: str, blocks: list[dict[str, list[float]]]) -> dict[str, Any]:
    """The figures of one thing that was timed."""
    if not blocks:
        return {"what": name, "error": "the time was up before its first turn"}
    ratios = sorted(statistics.median(one["new"]) / statistics.median(one["old"]) for one in blocks)
    every = {which: [ms for one in blocks for ms in one[which]] for which in ("old", "new")}
    return {
        "what": name,
        "turns": len(ratios),
        "old_ms": round(statistics.median(every["old"]), 4),
        "new_ms": round(statistics.median(every["new"]), 4),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_least": round(ratios[0], 4),
        "ratio_most": round(ratios[-1], 4),
        "ratio_of_minima": round(min(every["new"]) / min(every["old"]), 4),
    }


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--old", required=True, help="folder of the other tree (the one that holds onlooker/), or archive"
    )
    parser.add_argument("--new", default=".", help="folder of this tree")
    parser.add_argument("--out", help="file for one line of JSON")
    parser.add_argument("--model", default="llava-onevision-0.5b", help="a model, or sizes of one with random weights")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=8, help="repetitions of a block")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="also the N longest kernels of each")
    parser.add_argument("--seconds", type=float, default=300.0, help="ask for nothing more after so many")
    parser.add_argument("--window", type=int, default=2000, help="tokens of the sliding window of whole steps")
    parser.add_argument("--fill", type=int, default=44, help="steps that fill it")
    parser.add_argument("--context", type=int, default=4000, help="tokens before a frame that is read")
    for name, default in COUNTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=f"by commas, '' for none ({default})")
    options = parser.parse_args()
    for name in COUNTS:
        setattr(options, name, [int(part) for part in getattr(options, name).split(",") if part])
    if options.worker:
        serve(options)
        return
    rows = compare(options)
    for one in rows:
        if "error" in one:
            print(f"{one['what']:36} {one['error']}")
        else:
            print(f"{one['what']:36} {one['old_ms']:9.3f} {one['new_ms']:9.3f} ms", end="")
            print(f"  {one['ratio']:.3f}  {one['ratio_of_minima']:.3f}")
        for which, told in one.get("profile", {}).items():
            found = told.get("profile", told)
            print(f"    {which}: " + ", ".join(f"{key} {found[key]}" for key in found if key != "longest"))
    from onlooker.core import provenance  # not above: the other tree's process has another one, or none

    facts = {"bench": "paired", "model": options.model, "device": options.device, "rounds": options.rounds}
    line = json.dumps(facts | {"versions": provenance.versions(), "commit": provenance.commit(), "rows": rows})
    if options.out:
        with Path(options.out).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
