"""Flash-VStream's clusters and whole frames against a derivation in NumPy; constant size; few frames are exact."""

import itertools

import numpy as np
import pytest
import torch

from onlooker.core.tokens import VisualTokens
from onlooker.core.unread import Unread
from onlooker.memory.flash_vstream import FlashVStream

GRID, DIM = (4, 6), 5


def frame(number, seed=0):
    rng = np.random.default_rng([seed, number // 6, 7])
    features = rng.normal(size=(24, DIM)) + 0.2 * np.random.default_rng([seed, number]).normal(size=(24, DIM))
    return VisualTokens.of_frame(torch.from_numpy(features).float(), GRID, number, float(number))


def halves(tokens):
    """Means of two by two tokens, row by row, `[cells, dim]`."""
    grid = tokens.features.numpy().astype(np.float64).reshape(2, 2, 3, 2, DIM)
    return grid.mean((1, 3)).reshape(6, DIM)


def nearest_key(keys, mean):
    """The nearest; of equals, as two frames are to their mean, the older."""
    gaps = [((halves(key) - mean) ** 2).sum() for key in keys]
    return next(key for key, gap in zip(keys, gaps, strict=True) if gap <= 1.0001 * min(gaps))


def derived(frames, clusters):
    """By the description: weighted k-means of what was kept and the new frame; of each cluster the nearest frame."""
    centres, weights, keys = [], [], []
    for tokens in frames:
        centres, weights, keys = [*centres, halves(tokens)], [*weights, 1], [*keys, tokens]
        if len(centres) <= clusters:
            continue
        gap = {
            (a, b): weights[a] * weights[b] / (weights[a] + weights[b]) * ((centres[a] - centres[b]) ** 2).sum()
            for a, b in itertools.combinations(range(len(centres)), 2)
        }
        a, b = min(gap, key=gap.get)
        means = [c.copy() for n, c in enumerate(centres) if n != b]
        means[a] = (weights[a] * centres[a] + weights[b] * centres[b]) / (weights[a] + weights[b])
        for _ in range(10):
            owner = [min(range(clusters), key=lambda k, p=p: ((p - means[k]) ** 2).sum()) for p in centres]
            before, means = means, []
            for k in range(clusters):
                mine = [n for n in range(len(centres)) if owner[n] == k]
                total = sum(weights[n] for n in mine)
                means.append(sum(weights[n] * centres[n] for n in mine) / total if mine else before[k])
            if max(np.sqrt(((m - o) ** 2).sum()) for m, o in zip(means, before, strict=True)) < 1e-4:
                break
        order = list(dict.fromkeys(owner))
        keys = [nearest_key([keys[n] for n in range(len(keys)) if owner[n] == k], means[k]) for k in order]
        weights = [sum(w for w, o in zip(weights, owner, strict=True) if o == k) for k in order]
        centres = [means[k] for k in order]
    return centres, weights, keys


@pytest.mark.proves("flash_vstream", 1)
@pytest.mark.parametrize("seed", range(4))
def test_clusters_and_whole_frames_equal_a_plain_derivation(seed):
    policy = FlashVStream(form="csm_dam", clusters=5, details=2)
    state, frames = policy.new_state(), [frame(number, seed) for number in range(40)]
    for number, tokens in enumerate(frames):
        policy.absorb(Unread(tokens, float(number), float(number)), state)
    centres, weights, keys = derived(frames, 5)
    assert state.weights == weights and sum(weights) == 40
    for one, centre, whole, key in zip(state.clusters, centres, state.whole, keys, strict=True):
        np.testing.assert_allclose(one.content.features.numpy(), centre, rtol=1e-4, atol=1e-4)
        assert torch.equal(whole.content.features, key.features)
    heaviest = sorted(range(5), key=lambda n: (weights[n], state.clusters[n].at_s))[-2:]
    read = [one for one in policy.reread(torch.ones(1, DIM), state) if len(one.content) == 24]
    wanted = {float(keys[n].time_s[0]) for n in heaviest} | {39.0}
    assert {one.start_s for one in read} == wanted


@pytest.mark.slow
@pytest.mark.proves("flash_vstream", 2)
def test_tokens_and_bytes_stay_constant_over_ten_thousand_frames():
    policy = FlashVStream(clusters=4, details=2)
    state, counts, sizes = policy.new_state(), set(), set()
    for number in range(10_000):
        policy.absorb(Unread(frame(number % 977), float(number), float(number)), state)
        if number >= 1000 and number % 500 == 0:
            read = policy.reread(torch.ones(1, DIM), state)
            counts.add(sum(len(one.content) for one in read))
            sizes.add(state.num_bytes())
    assert counts <= {25 + 4 * 16 + k * 24 for k in (2, 3)} and len(sizes) == 1


def test_a_stream_of_few_frames_is_read_whole():
    """As many clusters as frames, and all of them in detail: every frame is read as it came, in its order."""
    policy = FlashVStream(form="csm_dam", clusters=9, details=9)
    state = policy.new_state()
    for number in range(9):
        policy.absorb(Unread(frame(number), float(number), float(number)), state)
    whole = [one for one in policy.reread(torch.ones(1, DIM), state) if len(one.content) == 24]
    assert [one.start_s for one in whole] == [float(number) for number in range(9)]
    assert all(torch.equal(one.content.features, frame(n).features) for n, one in enumerate(whole))


def test_published_sizes_of_star():
    """681 tokens: 25 abstract ones, 25 clusters of 16, three frames of 64 and the newest one."""
    policy, state = FlashVStream(), FlashVStream().new_state()
    rng = torch.Generator().manual_seed(0)
    for number in range(60):
        tokens = VisualTokens.of_frame(torch.randn(64, DIM, generator=rng), (8, 8), number, float(number))
        policy.absorb(Unread(tokens, float(number), float(number)), state)
    read = policy.reread(torch.ones(1, DIM), state)
    assert sum(len(one.content) for one in read) == 681
