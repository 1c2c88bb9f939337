"""Memories that hold tokens, against derivations of their own: CurveStream, scene tiling, StreamForest."""

import itertools

import numpy as np
import pytest
import torch

from onlooker.core.tokens import VisualTokens, join
from onlooker.core.unread import Unread
from onlooker.memory._held import tome
from onlooker.memory.curvestream import CurveStream, curve_score
from onlooker.memory.scene_tiling import SceneTiling, falls
from onlooker.memory.streamforest import StreamForest, grown

GRID, DIM = (4, 6), 8
WORDS = torch.ones(1, DIM)


def frame(features, number, grid=GRID):
    features = torch.as_tensor(np.asarray(features), dtype=torch.float32)
    return Unread(VisualTokens.of_frame(features, grid, number, float(number)), float(number), float(number))


def clip(count, seed=0, scene=9):
    """Scenes of some frames, each a picture with a drift and a little noise; `[count][tokens, dim]`."""
    rng = np.random.default_rng(seed)
    picture, drift, frames = rng.normal(size=(24, DIM)), rng.normal(size=DIM) * 0.05, []
    for number in range(count):
        if number % scene == scene - 1:
            picture, drift = rng.normal(size=(24, DIM)), rng.normal(size=DIM) * 0.05
        picture = picture + drift
        frames.append(picture + 0.02 * rng.normal(size=(24, DIM)))
    return frames


def cosine(one, other):
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


# ------------------------------------------------------------------------------------------------- CurveStream


def curve_by_hand(frames, memory):
    """The published rule, frame by frame: "whole", "small" or "none" for each, and the scores."""
    looks, mean, variance, said, scores = [], 0.0, 0.0, [], []
    for features in frames:
        token = np.asarray(features, dtype=np.float64).mean(0)
        looks.append(token / np.linalg.norm(token))
        if len(looks) <= 3:
            said.append("whole")
            continue
        one, two, three = looks[-3:]
        score = 1 - two @ three
        if min(np.linalg.norm(two - one), np.linalg.norm(three - two)) >= memory.noise:
            score += memory.bend * (1 - cosine(two - one, three - two))
        scores.append(score)
        mean = 0.9 * mean + 0.1 * score
        variance = 0.9 * variance + 0.1 * (score - mean) ** 2
        bars = mean + memory.clear * variance**0.5, mean + memory.small * variance**0.5
        said.append("whole" if score >= bars[0] else "small" if score >= bars[1] else "none")
    return said, scores


@pytest.mark.proves("curvestream", 1)
@pytest.mark.parametrize("seed", range(3))
def test_turning_points_equal_a_plain_derivation(seed):
    memory, frames = CurveStream(frames=100), clip(60, seed)
    state = memory.new_state()
    for number, features in enumerate(frames):
        memory.absorb(frame(features, number), state)
    said, scores = curve_by_hand(frames, memory)
    assert {"whole", "small", "none"} == set(said)
    kept = {one.start_s: len(one.content) for one in state.kept}
    assert kept == {float(n): {"whole": 24, "small": 6}[word] for n, word in enumerate(said) if word != "none"}
    looks = torch.nn.functional.normalize(torch.tensor(np.stack(frames[-3:])).float().mean(1), dim=-1)
    assert curve_score(looks, memory.bend, memory.noise) == pytest.approx(scores[-1], abs=1e-5)
    read = memory.reread(WORDS, state)
    assert read[-1] is state.newest and len(read[-1].content) == 24, "the newest is read whole"
    short = CurveStream(frames=4)
    few = short.new_state()
    for number, features in enumerate(frames):
        short.absorb(frame(features, number), few)
    assert [one.start_s for one in few.kept] == [one.start_s for one in state.kept[-4:]], "first in, first out"


@pytest.mark.proves("curvestream", 2)
def test_a_still_scene_turns_by_nothing():
    """Noise alone has no direction: without the gate its curvature is larger than that of a cut."""
    memory, rng = CurveStream(), np.random.default_rng(0)
    picture = rng.normal(size=(24, DIM))
    looks = [picture + 0.01 * rng.normal(size=(24, DIM)) for _ in range(30)]
    tokens = torch.nn.functional.normalize(torch.tensor(np.stack(looks)).float().mean(1), dim=-1)
    gated = [curve_score(tokens[n : n + 3], 1.0, memory.noise) for n in range(28)]
    raw = [curve_score(tokens[n : n + 3], 1.0, 1e-9) for n in range(28)]
    moved = [1 - float(tokens[n + 1] @ tokens[n + 2]) for n in range(28)]
    assert gated == moved and np.mean(raw) > 1.0
    frozen = tokens[:1].expand(3, -1)
    assert curve_score(frozen, 1.0, memory.noise) == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------------------------ scene tiling


def cuts_by_hand(similarities, deep):
    """Walk left while the similarity does not fall: from there to here is the depth. All depths so far scale it."""
    depths, cuts = [], []
    for i, here in enumerate(similarities):
        j = i
        while j and similarities[j - 1] >= similarities[j]:
            j -= 1
        depths.append(similarities[j] - here)
        cuts.append(depths[-1] > 0 and depths[-1] > np.mean(depths) + deep * np.std(depths))
    return cuts


@pytest.mark.parametrize("seed", range(4))
def test_scenes_end_where_the_definition_says(seed):
    rng = np.random.default_rng(seed)
    similarities = np.clip(np.cumsum(rng.normal(size=200) * 0.05) + rng.normal(size=200) * 0.1, -1, 1).tolist()
    similarities[50] = similarities[51]
    state = SceneTiling().new_state()
    found = [falls(state, one, 0.5) for one in similarities]
    assert found == cuts_by_hand(similarities, 0.5) and 10 < sum(found) < 120


def test_scenes_become_small_frames_and_the_running_one_stays_whole():
    memory, frames = SceneTiling(scenes=3, frames=4), clip(47, scene=10)
    state = memory.new_state()
    means = [features.mean(0) for features in frames]
    cuts = cuts_by_hand([cosine(a, b) for a, b in itertools.pairwise(means)], 0.5)
    starts = [0, *(n + 1 for n, is_cut in enumerate(cuts) if is_cut)]
    assert {9, 19, 29, 39} <= set(starts), "a new picture is a new scene"
    for number, features in enumerate(frames):
        memory.absorb(frame(features, number), state)
        running = number - max(start for start in starts if start <= number)
        assert state.length == running + 1
        stride = 1
        while -(-(running + 1) // stride) > 4:
            stride *= 2
        assert [one.start_s for one in state.running] == [
            float(number - running + n) for n in range(0, running + 1, stride)
        ]
    assert len(state.past) == 3 and sum(state.weights) == starts[-1]
    read = memory.reread(WORDS, state)
    assert [len(one.content) for one in read] == [6] * 3 + [24] * (len(read) - 3) and read[-1] is state.newest


# ------------------------------------------------------------------------------------------------- StreamForest


def event_of(features, start, frames, merges):
    parts = [frame(some, start + n) for n, some in enumerate(features)]
    content = join([one.content for one in parts])
    block = Unread(content, parts[0].start_s, parts[-1].end_s)
    return block, frames, merges, float(np.mean([one.start_s for one in parts]))


@pytest.mark.parametrize("seed", range(4))
def test_the_neighbours_of_least_penalty_grow_together(seed):
    rng = np.random.default_rng(seed)
    events, start, base = [], 0, rng.normal(size=(24, DIM))
    for _ in range(6):
        count = int(rng.integers(1, 5))
        base = rng.normal(size=(24, DIM)) if rng.random() < 0.6 else base
        features = [base + 0.3 * rng.normal(size=(24, DIM)) for _ in range(count)]
        events.append(event_of(features, start, count, int(rng.integers(1, 6))))
        start += count
    now, most, penalties = float(start), max(event[2] for event in events), []
    for one, other in itertools.pairwise(events):
        a, b = (event[0].content.features.numpy().astype(np.float64) for event in (one, other))
        a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
        unlike = 1 - np.mean([max(float(x @ y) for y in b) for x in a])
        age, often = (one[3] + other[3]) / 2 / now, (one[2] + other[2]) / 2 / most
        penalties.append(0.4 * unlike + 0.2 * age + 0.4 * often)
    n = int(np.argmin(penalties))
    left = grown(events, now, (0.4, 0.2, 0.4))
    assert len(left) == 5 and left[:n] == events[:n] and left[n + 1 :] == events[n + 2 :]
    block, frames, merges, time_s = left[n]
    (_, a, grew, one_s), (_, b, other_grew, other_s) = events[n : n + 2]
    assert frames == -(-(a + b) // 2) and merges == grew + other_grew
    assert time_s == pytest.approx((one_s * a + other_s * b) / (a + b))
    assert len(block.content) == 24 * frames, "as many tokens a frame as before"
    assert float(block.content.weight.sum()) == 24 * (a + b), "no weight is lost"
    assert (block.start_s, block.end_s) == (events[n][0].start_s, events[n + 1][0].end_s)


def test_events_are_cut_where_similarity_falls_deepest():
    memory, frames = StreamForest(short_frames=5, batch=4, event_frames=8), clip(10, seed=3, scene=100)
    frames[3:] = [features + np.array([9.0] + [0.0] * (DIM - 1)) for features in frames[3:]]
    state = memory.new_state()
    for number, features in enumerate(frames):
        memory.absorb(frame(features, number), state)
    ((event, count, merges, time_s),) = state.events
    assert (count, merges, event.start_s, event.end_s, time_s) == (3, 1, 0.0, 2.0, 1.0)
    assert [one.start_s for one in state.short] == [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert {len(one.content) for one in state.short} == {round(24 * 128 / 729)}
    assert len(event.content) == 3 * round(24 * 64 / 729)


def test_a_forest_stays_within_its_quota_and_pictures_of_two_sizes_stay_apart():
    memory = StreamForest(short_frames=4, batch=3, event_frames=6)
    state, frames = memory.new_state(), clip(120)
    for number, features in enumerate(frames):
        wide = number % 20 < 10
        memory.absorb(frame(features if wide else features[:12], number, GRID if wide else (3, 4)), state)
        assert sum(event[1] for event in state.events) <= 6 and len(state.short) < 7
        for event, *_ in state.events:
            assert (event.content.row < event.content.grid[0]).all()
    times = [one.at_s for one in memory.reread(WORDS, state)]
    assert times == sorted(times) and times[-1] == 119.0


def test_merging_keeps_weight_and_takes_the_most_alike_first():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(24, DIM, generator=rng)
    features[6] = features[17] * 2
    tokens = VisualTokens.of_frame(features, GRID, 0, 0.0)
    one_fewer = tome(tokens, 23)
    assert len(one_fewer) == 23 and 17 not in one_fewer.slot.tolist()
    at = one_fewer.slot.tolist().index(6)
    torch.testing.assert_close(one_fewer.features[at], (features[6] + features[17]) / 2)
    for count in (12, 5, 1):
        few = tome(tokens, count)
        assert len(few) == count and float(few.weight.sum()) == 24
        torch.testing.assert_close(few.weight @ few.features, features.sum(0), rtol=1e-4, atol=1e-4)
