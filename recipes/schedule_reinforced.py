"""Is reinforcement worth it? `python -m recipes.schedule_reinforced --workers 10 --out rows.jsonl`.

SL-MGAC learns when a feed shows a live stream by an actor and a critic, with supervised heads beside the critic. What
the package ships is the supervised part (`schedule/learned`). Here an actor and a critic learn the same choice by what
looks find, from the supervised model on (`warm`) and from nothing (`cold`), five seeds each, on the streams that the
supervised model learnt from. A step is a second: as many streams as there is room for are drawn by the actor's values
(one after the other, without putting back); the reward is the share of the looks that found something new. Each result
is put beside the supervised model on the streams of `recipes.schedule_value`: F1 and share found in time. It ships only
if it is above on all five seeds.
"""

import argparse
import copy
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from onlooker.core import provenance
from onlooker.core.contracts import Waiting
from onlooker.core.frame import Frame
from onlooker.evals.live.scenes import Event
from onlooker.evals.statistics import paired_gap
from onlooker.schedule.learned import FEATURES, Learned, Usual, ValueModel, value_model
from recipes.schedule_value import Camera, Watched, camera, watch

LATER, CURIOUS, RATE = 0.8, 1e-3, 1e-3
"""What a find a second later is worth, the weight of the actor's entropy, and the rate of learning."""


@dataclass(frozen=True)
class Reinforced(Learned):
    """The schedule with another value model."""

    actor: ValueModel = field(default_factory=ValueModel, compare=False)

    def values(self, rows: Tensor) -> Tensor:
        """The actor's."""
        with torch.no_grad():
            return self.actor(rows)


@dataclass
class Moves:
    """What an actor did in one run through the streams, a second each."""

    log_p: list[Tensor] = field(default_factory=list)
    entropy: list[Tensor] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)
    """Mean features of the streams that could be chosen, `[FEATURES]`."""
    found: list[float] = field(default_factory=list)


def drawn(values: Tensor, count: int, chance: torch.Generator) -> tuple[list[int], Tensor]:
    """So many places, drawn by `values` without putting back, and the logarithm of the chance of just that."""
    noise = -torch.empty_like(values).exponential_(generator=chance).log()
    places = (values.detach() + noise).topk(min(count, len(values))).indices
    left, total = list(range(len(values))), values.new_zeros(())
    for place in places.tolist():
        total = total + values[place] - values[left].logsumexp(0)
        left.remove(place)
    return places.tolist(), total


def act(cameras: Sequence[Camera], actor: ValueModel, room: int, chance: torch.Generator) -> Moves:
    """Run through the streams once; who has had no look, or none for too long, goes first, as in `learned`."""
    reader = Learned()
    state, out = reader.new_state(), Moves()
    assert isinstance(state, Usual)
    told: list[set[Event]] = [set() for _ in cameras]
    for tick in range(len(cameras[0].frames)):
        waiting = [Waiting(number, float(tick), one.frames[tick]) for number, one in enumerate(cameras)]
        late = [n for n in range(len(cameras)) if tick - state.looked_s.get(n, -1e9) >= reader.longest_s]
        late.sort(key=lambda n: state.looked_s.get(n, -1e9))
        chosen, free = late[:room], [n for n in range(len(cameras)) if n not in late]
        if len(chosen) < room and free:
            rows = torch.stack([reader.features(waiting[n], float(tick), state) for n in free])
            values = actor(rows)
            places, log_p = drawn(values, room - len(chosen), chance)
            chosen += [free[place] for place in places]
            fresh = 0
            for n in (free[place] for place in places):
                there = {e for e in cameras[n].things if e.start_s <= tick <= e.end_s}
                fresh += bool(there - told[n])
            out.log_p.append(log_p)
            out.entropy.append(torch.distributions.Categorical(logits=values).entropy())
            out.seen.append(rows.mean(0))
            out.found.append(fresh / len(places))
        for n in chosen:
            told[n] |= {e for e in cameras[n].things if e.start_s <= tick <= e.end_s}
        reader.taken([waiting[n] for n in chosen], float(tick), state)
    return out


def learn(
    groups: Sequence[Sequence[Camera]], room: int, seed: int, warm: bool, rounds: int, deadline: float
) -> tuple[ValueModel, list[float]]:
    """An actor, and what it found in each round."""
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    actor = copy.deepcopy(value_model()).requires_grad_() if warm else ValueModel()
    critic = ValueModel()
    optimiser = torch.optim.Adam([*actor.parameters(), *critic.parameters()], RATE)
    history: list[float] = []
    for number in range(rounds):
        moves = act(groups[number % len(groups)], actor, room, chance)
        later, returns = 0.0, []
        for found in reversed(moves.found):
            later = found + LATER * later
            returns.append(later)
        worth, value = torch.tensor(returns[::-1]), critic(torch.stack(moves.seen))
        better = (worth - value).detach()
        better = (better - better.mean()) / (better.std() + 1e-6)
        loss = -(better * torch.stack(moves.log_p)).mean() + (worth - value).square().mean()
        loss = loss - CURIOUS * torch.stack(moves.entropy).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*actor.parameters(), *critic.parameters()], 1.0)
        optimiser.step()
        history.append(sum(moves.found) / len(moves.found))
        if time.monotonic() > deadline:
            break
    return actor, history


def f1(runs: Sequence[Watched]) -> float:
    """Of the share of looks that found something, and the share of events that were found in time."""
    precision = sum(one.useful for one in runs) / max(1, sum(one.looks for one in runs))
    found = [value for one in runs for value in one.found]
    recall = sum(found) / len(found)
    return 2 * precision * recall / max(1e-9, precision + recall)


def drawn_camera(seed: int, split, seconds: int, folder: str) -> None:
    """One stream into a file, its pictures as one array."""
    one = camera(seed, split, seconds)
    pictures = torch.stack([torch.from_numpy(frame.image.copy()) for frame in one.frames])
    torch.save({"pictures": pictures, "times": [f.time_s for f in one.frames], "things": one.things},
               Path(folder) / f"{split}_{seed}.pt")  # fmt: skip


def loaded(seeds: Sequence[int], split: str, folder: str) -> list[Camera]:
    """Streams from their files."""
    out = []
    for seed in seeds:
        held = torch.load(Path(folder) / f"{split}_{seed}.pt", weights_only=False)
        frames = [Frame(image.numpy(), at) for image, at in zip(held["pictures"], held["times"], strict=True)]
        out.append(Camera(frames, held["things"]))
    return out


def arm(seed: int, warm: bool, given: argparse.Namespace, folder: str, deadline: float) -> dict:
    """Learn once, and compare."""
    torch.set_num_threads(1)
    half = given.streams // 2
    groups = [loaded(range(first, 2 * given.streams, 2), "train", folder)[:half] for first in range(2)]
    actor, history = learn(groups, max(1, given.room // 2), seed, warm, given.rounds, deadline)
    ours, theirs, clusters = [], [], []
    for group in range(given.groups):
        first = group * given.streams
        cameras = loaded(range(first, first + given.streams), "test", folder)
        ours.append(watch(cameras, Reinforced(actor=actor), given.room))
        theirs.append(watch(cameras, Learned(), given.room))
        clusters += [f"{group}/{name}" for name in ours[-1].clusters]
    gaps = [a - b for one, two in zip(ours, theirs, strict=True) for a, b in zip(one.found, two.found, strict=True)]
    gap = paired_gap(gaps, clusters)
    finite = all(bool(part.isfinite().all()) for part in actor.state_dict().values())
    return {
        "bench": "schedule_reinforced", "seed": seed, "warm": warm, "rounds": len(history),
        "found_first": sum(history[:10]) / len(history[:10]), "found_last": sum(history[-10:]) / len(history[-10:]),
        "f1": f1(ours), "f1_supervised": f1(theirs), "above": finite and f1(ours) > f1(theirs), "finite": finite,
        "in_time_gap": gap.gap, "low": gap.low, "high": gap.high, "p": gap.p, "events": len(gaps),
        "streams": given.streams, "room": given.room, "seconds": given.seconds, "features": FEATURES,
        "commit": provenance.commit(), "versions": provenance.versions(),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a line for each seed and start, as it is done")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--room", type=int, default=6, help="looks a second")
    parser.add_argument("--seconds", type=int, default=90)
    parser.add_argument("--groups", type=int, default=3, help="groups of streams that are compared on")
    parser.add_argument("--rounds", type=int, default=200, help="runs through a group of streams")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--learn-s", type=float, default=3600.0, help="learn no longer than that")
    given = parser.parse_args(argv)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="onlooker-schedule-") as folder, spawn.Pool(given.workers) as pool:
        wanted = [(seed, "train") for seed in range(2 * given.streams)]
        wanted += [(seed, "test") for seed in range(given.groups * given.streams)]
        pool.starmap(drawn_camera, [(seed, split, given.seconds, folder) for seed, split in wanted], chunksize=2)
        print(f"{len(wanted)} streams drawn", flush=True)
        deadline = time.monotonic() + given.learn_s
        todo = [(seed, warm, given, folder, deadline) for warm in (True, False) for seed in range(given.seeds)]
        for result in [pool.apply_async(arm, one) for one in todo]:
            row = result.get()
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            start, found = "warm" if row["warm"] else "cold", f"{row['found_first']:.3f} to {row['found_last']:.3f}"
            scores = f"F1 {row['f1']:.3f}, supervised {row['f1_supervised']:.3f}"
            print(f"seed {row['seed']}, {start}: {scores}; found {found}", flush=True)


if __name__ == "__main__":
    main()
