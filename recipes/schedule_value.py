"""Teach the value of a look: `python -m recipes.schedule_value --out onlooker/schedule/learned.json`.

Sixty-four streams of Pocket World, most of them quiet, some panning, flickering or busy, six looks a second. An event
is found when a look shows a shape that no earlier look at that stream has shown. The model learns from the looks
of a schedule that is half change, half chance, whether each would find something; the schedules are then compared on
streams of another split: share of the events found within five seconds of their coming (recall), and F1 with the
share of looks that found something (precision).
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from onlooker.core.contracts import SchedulePolicy, Waiting
from onlooker.core.frame import Frame
from onlooker.evals.live.scenes import Event, events, seen
from onlooker.evals.statistics import paired_gap
from onlooker.schedule.change_first import ChangeFirst
from onlooker.schedule.learned import Learned, ValueModel, value_model
from onlooker.schedule.round_robin import RoundRobin
from onlooker.world import make_episode
from onlooker.world.episode import Split

KINDS = ("static_hour", "long", "static_hour", "pan", "long", "static_hour", "flicker", "mixed")
IN_TIME_S = 5.0


@dataclass(frozen=True)
class Camera:
    """A stream: its pictures, one a second, and what comes."""

    frames: list[Frame]
    things: list[Event]


def camera(seed: int, split: Split, seconds: int) -> Camera:
    """The stream of this seed."""
    episode = make_episode(seed, split, duration_s=float(seconds), kind=KINDS[seed % len(KINDS)])
    sprites, _ = seen(episode, [float(at) for at in range(seconds)])
    times = [float(at) for at in range(seconds)]
    things = [e for one in sprites.values() for e in events(one, times, one.look) if e.start_s > 0]
    frames = [Frame(f.image, f.time_s) for f in episode.frames(fps=1.0, size=(64, 64))]
    return Camera(frames[:seconds], things)


class Noting(Learned):
    """Half of the looks by change, half by chance: what the model learns from, remembered as `Learned` does."""

    def order(self, waiting, now_s, state):
        """Change, but chance for every other place."""
        by_change = ChangeFirst.order(self, waiting, now_s, state)
        rng = random.Random(now_s)
        chosen: list[int] = []
        while by_change:
            place = by_change[0] if rng.random() < 0.5 else rng.choice(by_change)
            by_change.remove(place)
            chosen.append(place)
        return chosen


@dataclass
class Watched:
    """What looks found: for each event whether it was found in time; what each look showed and was told from."""

    found: list[float]
    clusters: list[str]
    looks: int = 0
    useful: int = 0
    """Looks that found something."""
    rows: list[torch.Tensor] | None = None
    labels: list[float] | None = None


def watch(cameras: Sequence[Camera], policy: SchedulePolicy | None, room: int, learns: bool = False) -> Watched:
    """Run a schedule, or for None the oracle, which looks where something is that no look has shown."""
    state = policy.new_state() if policy is not None else None
    told: list[set[Event]] = [set() for _ in cameras]
    in_time: set[tuple[int, Event]] = set()
    out = Watched([], [], rows=[], labels=[])
    reader = Learned()
    for tick in range(len(cameras[0].frames)):
        waiting = [Waiting(number, float(tick), one.frames[tick]) for number, one in enumerate(cameras)]
        there = [{e for e in one.things if e.start_s <= tick <= e.end_s} for one in cameras]
        fresh = [bool(now - told[number]) for number, now in enumerate(there)]
        if policy is None:
            chosen = sorted(range(len(cameras)), key=lambda n: (not fresh[n], n))[:room]
        else:
            assert state is not None
            if learns:
                _note(out, reader, waiting, fresh, float(tick), state)
            chosen = policy.choose(waiting, room, float(tick), state)
        for number in chosen:
            out.looks += 1
            out.useful += fresh[number]
            for event in there[number] - told[number]:
                if tick - event.start_s <= IN_TIME_S:
                    in_time.add((number, event))
            told[number] |= there[number]
    for number, one in enumerate(cameras):
        for event in one.things:
            out.found.append(float((number, event) in in_time))
            out.clusters.append(str(number))
    return out


def _note(out: Watched, reader: Learned, waiting, fresh, now_s: float, state) -> None:
    assert out.rows is not None and out.labels is not None
    for number, one in enumerate(waiting):
        if number in state.looked_s and (fresh[number] or (number + int(now_s)) % 3 == 0):
            out.rows.append(reader.features(one, now_s, state))
            out.labels.append(float(fresh[number]))


def teach(rows: torch.Tensor, labels: torch.Tensor, steps: int, seed: int = 0) -> ValueModel:
    """The value model of these looks."""
    torch.manual_seed(seed)
    model = ValueModel()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-2, total_steps=steps)
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(model(rows), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the model; without, the package's is compared")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--room", type=int, default=6, help="looks a second")
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--groups", type=int, default=3, help="groups of streams that are compared on")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--append", type=Path, help="file of lines for what came of it")
    given = parser.parse_args(argv)
    if given.out:
        cameras = [camera(seed, "train", given.seconds) for seed in range(2 * given.streams)]
        seen_by = [
            watch(cameras[first :: 2], Noting(), given.room, learns=True) for first in range(2)
        ]  # fmt: skip
        rows = torch.stack([row for one in seen_by for row in one.rows or []])
        labels = torch.tensor([label for one in seen_by for label in one.labels or []])
        model = teach(rows, labels, given.steps)
        held = {name: (10**5 * part).round().div(10**5).tolist() for name, part in model.state_dict().items()}
        given.out.write_text(json.dumps(held) + "\n", encoding="utf-8")
        value_model.cache_clear()
        print(f"{len(rows)} looks, {labels.mean():.3f} find something", flush=True)
    arms = {"round_robin": RoundRobin(), "change_first": ChangeFirst(), "learned": Learned(), "oracle": None}
    found: dict[str, list[float]] = {name: [] for name in arms}
    looks, useful = dict.fromkeys(arms, 0), dict.fromkeys(arms, 0)
    clusters: list[str] = []
    for group in range(given.groups):
        first = group * given.streams
        cameras = [camera(seed, "test", given.seconds) for seed in range(first, first + given.streams)]
        for name, policy in arms.items():
            one = watch(cameras, policy, given.room)
            found[name] += one.found
            looks[name], useful[name] = looks[name] + one.looks, useful[name] + one.useful
            print(group, name, round(sum(one.found) / len(one.found), 4), len(one.found), flush=True)
        clusters += [f"{group}/{name}" for name in one.clusters]
    row: dict = {name: sum(values) / len(values) for name, values in found.items()}
    row["f1"] = {}
    for name, share in found.items():
        precision, recall = useful[name] / max(1, looks[name]), sum(share) / len(share)
        row["f1"][name] = 2 * precision * recall / max(1e-9, precision + recall)
    for other in ("change_first", "round_robin"):
        gap = paired_gap([a - b for a, b in zip(found["learned"], found[other], strict=True)], clusters)
        row[f"learned_minus_{other}"] = {"gap": gap.gap, "low": gap.low, "high": gap.high, "p": gap.p}
    row |= {"events": len(clusters), "streams": given.streams, "room": given.room, "seconds": given.seconds}
    print(json.dumps(row))
    if given.append:
        with given.append.open("a") as lines:
            lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
