"""The reinforced schedule: what it draws has the chance it says, and it learns what pays."""

import itertools
from collections import Counter

import numpy as np
import torch

from onlooker.core.frame import Frame
from onlooker.evals.live.scenes import Event
from onlooker.schedule.learned import Learned, ValueModel
from recipes.schedule_reinforced import Reinforced, act, drawn, f1, learn
from recipes.schedule_value import Camera, watch


def test_places_are_drawn_with_the_chance_that_is_told():
    values, chance = torch.tensor([1.0, 0.0, -1.0, 0.5]), torch.Generator().manual_seed(0)
    told, seen = {}, Counter()
    for _ in range(4000):
        places, log_p = drawn(values, 2, chance)
        seen[tuple(places)] += 1
        told[tuple(places)] = float(log_p.exp())
    assert set(seen) == set(itertools.permutations(range(4), 2))
    assert abs(sum(told.values()) - 1) < 1e-5
    assert all(abs(seen[pair] / 4000 - told[pair]) < 0.03 for pair in told)


def cameras(count: int, seconds: int) -> list[Camera]:
    """Of every second stream the picture changes each second, and something new is in it; the others stand still."""
    rng, out = np.random.default_rng(0), []
    for number in range(count):
        busy = number % 2 == 0
        still = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        pictures = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) if busy else still for _ in range(seconds)]
        things = [Event(float(at), float(at), f"{number}-{at}") for at in range(1, seconds)] if busy else []
        out.append(Camera([Frame(picture, float(at)) for at, picture in enumerate(pictures)], things))
    return out


def test_an_actor_learns_to_look_where_something_is_found():
    streams = cameras(6, 12)
    untaught = act(streams, ValueModel(), 2, torch.Generator().manual_seed(1))
    actor, history = learn([streams], 2, 0, warm=False, rounds=60, deadline=float("inf"))
    assert sum(history[-5:]) / 5 > sum(untaught.found) / len(untaught.found) + 0.1
    assert 0 < f1([watch(streams, Reinforced(actor=actor), 2)]) <= 1


def test_with_the_supervised_values_it_is_the_shipped_schedule():
    from onlooker.schedule.learned import value_model

    streams = cameras(4, 8)
    assert watch(streams, Reinforced(actor=value_model()), 2).found == watch(streams, Learned(), 2).found
