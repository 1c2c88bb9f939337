"""Methods that decide frame by frame, against plain derivations of their papers, token by token."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from onlooker.compress import ADTS, CTR, EVS, VCast, VisionZip
from onlooker.core.contracts import Compressor
from onlooker.core.tokens import VisualTokens

TOKENS, DIM = 12, 6


def clip(seed: int, frames: int = 6, change: float = 0.4) -> list[VisualTokens]:
    """Some tokens stand still but for noise, others are new in every frame."""
    make = torch.Generator().manual_seed(seed)
    base, shown = torch.randn(TOKENS, DIM, generator=make), []
    for number in range(frames):
        new = torch.rand(TOKENS, 1, generator=make) < change
        fresh = torch.randn(TOKENS, DIM, generator=make)
        base = torch.where(new, fresh, base + 0.05 * torch.randn(TOKENS, DIM, generator=make))
        extras = {"saliency": torch.rand(TOKENS, generator=make) / TOKENS}
        shown.append(VisualTokens.of_frame(base, (3, 4), number, float(number), extras))
    return shown


def run(method: Compressor, frames: list[VisualTokens]) -> list[VisualTokens]:
    state = method.new_state()
    return [method.compress(tokens, state) for tokens in frames]


def rows(tokens: VisualTokens) -> np.ndarray:
    return tokens.features.double().numpy()


def salient(tokens: VisualTokens) -> np.ndarray:
    return tokens.extras["saliency"].double().numpy()


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))


def highest(values: np.ndarray, count: int) -> list[int]:
    return sorted(sorted(range(len(values)), key=lambda n: (-values[n], n))[:count])


# --------------------------------------------------------------------------------------------------------------- evs


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_evs_keeps_the_share_over_the_stream(share: float) -> None:
    """On tokens worth the same everywhere, within two points; always the most changed of a frame."""
    frames = clip(1, frames=200, change=0.5)
    outs = run(EVS(keep_ratio=share, horizon=10_000), frames)
    assert len(outs[0]) == TOKENS
    kept = sum(map(len, outs[1:])) / (199 * TOKENS)
    assert abs(kept - share) < 0.02
    for before, now, out in zip(frames, frames[1:], outs[1:], strict=False):
        worth = np.array([1 - cosine(a, b) for a, b in zip(rows(before), rows(now), strict=True)])
        assert out.slot.tolist() == highest(worth, len(out))


def test_evs_deals_by_worth_and_not_by_frame() -> None:
    """A cut keeps more than its share, the quiet frames behind it less, and those that stand still nothing."""
    still = clip(2, 1)[0]
    frames = [still] * 10 + clip(3, 3, change=1.0) + [still] * 5
    counts = [len(out) for out in run(EVS(keep_ratio=0.2), frames)]
    assert counts[0] == TOKENS and counts[1:10] == [0] * 9
    assert min(counts[10:13]) >= TOKENS // 2 and counts[14:] == [0] * 4


# --------------------------------------------------------------------------------------------------------------- ctr


def density_centres(features: np.ndarray, members: list[int], count: int, k: int = 7) -> list[int]:
    """DPC-kNN with lists."""
    if not members:
        return []
    away = {
        (i, j): np.linalg.norm(features[i] - features[j]) / math.sqrt(features.shape[1])
        for i in members
        for j in members
    }
    density = {}
    for i in members:
        near = sorted(away[i, j] ** 2 for j in members)[:k]
        density[i] = math.exp(-sum(near) / len(near))
    score = {}
    for i in members:
        denser = [j for j in members if density[j] > density[i]]
        score[i] = density[i] * (min(away[i, j] for j in denser) if denser else max(away[i, j] for j in members))
    return sorted(sorted(members, key=lambda n: (-score[n], n))[:count])


@pytest.mark.parametrize("keep", [3, 5, 9])
@pytest.mark.parametrize("seed", range(3))
def test_ctr_equals_a_derivation_with_lists(seed: int, keep: int) -> None:
    frames = clip(seed)
    outs = run(CTR(keep=keep), frames)
    for number, (now, out) in enumerate(zip(frames, outs, strict=True)):
        x = rows(now)
        static = [n for n in range(TOKENS) if number and cosine(rows(frames[number - 1])[n], x[n]) > 0.9]
        dynamic = [n for n in range(TOKENS) if n not in static]
        num_static = min(keep * len(static) // TOKENS, len(static))
        num_dynamic = keep - num_static
        if num_dynamic > len(dynamic):
            num_dynamic, num_static = len(dynamic), keep - len(dynamic)
        salience = salient(now)
        stay = sorted(sorted(dynamic, key=lambda n: (-salience[n], n))[:num_dynamic])
        centres = density_centres(x, static, num_static)
        members: dict[int, list[int]] = {c: [] for c in centres}
        for n in static:
            if centres and n not in centres:
                members[min(centres, key=lambda c: (np.linalg.norm(x[n] - x[c]), c))].append(n)
        assert out.slot.tolist() == sorted(stay + centres) and len(out) == keep
        for slot, row, weight in zip(out.slot.tolist(), rows(out), out.weight.tolist(), strict=True):
            joined = members.get(slot, [])
            wanted = 0.6 * x[slot] + 0.4 * np.mean([x[n] for n in joined], axis=0) if joined else x[slot]
            assert np.allclose(row, wanted, atol=1e-5) and weight == 1 + len(joined)
    assert any((out.weight > 1).any() for out in outs), "nothing was merged"


# --------------------------------------------------------------------------------------------------------- visionzip


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("keep", [4, 7, 10])
def test_visionzip_equals_a_derivation_with_lists(keep: int, average: bool) -> None:
    for seed in range(3):
        (now,) = clip(seed, 1)
        (out,) = run(VisionZip(keep=keep, average=average), [now])
        x, dominant = rows(now), highest(salient(now), max(1, round(keep * 54 / 64)))
        rest = [n for n in range(TOKENS) if n not in dominant]
        few = keep - len(dominant)
        targets = rest[:: max(1, len(rest) // max(1, few))][:few]
        members: dict[int, list[int]] = {t: [] for t in targets}
        for n in rest:
            if targets and n not in targets:
                members[max(targets, key=lambda t: cosine(x[t], x[n]))].append(n)
        assert out.slot.tolist() == sorted(dominant + targets)
        for slot, row, weight in zip(out.slot.tolist(), rows(out), out.weight.tolist(), strict=True):
            joined = [x[n] for n in members.get(slot, [])]
            wanted = x[slot] + (np.mean(joined, axis=0) if joined else 0)
            wanted = np.mean([x[slot], *joined], axis=0) if average else wanted
            assert np.allclose(row, wanted, atol=1e-5) and weight == 1 + len(joined)
        if few:
            assert out.weight.sum() == TOKENS


# -------------------------------------------------------------------------------------------------------------- adts


@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize("keep", [1, 4, 9])
def test_adts_equals_greedy_picking_with_lists(keep: int, event: bool) -> None:
    frames = clip(4)
    outs = run(ADTS(keep=keep, event=event), frames)
    seen: list[np.ndarray] = []
    for now, out in zip(frames, outs, strict=True):
        x, weight = rows(now), salient(now)
        seen.append(x.mean(0))
        if event:
            mean = np.mean(seen, axis=0)
            weight = weight * np.array([max(0.0, cosine(row, mean)) for row in x])
        away = [[(1 - cosine(x[i], x[j])) * weight[j] for j in range(TOKENS)] for i in range(TOKENS)]
        first = [min(away[i][j] for i in range(TOKENS) if i != j) for j in range(TOKENS)]
        picked = [max(range(TOKENS), key=lambda j: (first[j], -j))]
        while len(picked) < keep:
            left = [j for j in range(TOKENS) if j not in picked]
            picked.append(max(left, key=lambda j: (min(away[i][j] for i in picked), -j)))
        assert out.slot.tolist() == sorted(picked)


# ------------------------------------------------------------------------------------------------------------- vcast


@pytest.mark.parametrize("still", [0.0, 0.02])
def test_vcast_equals_a_derivation_with_lists(still: float) -> None:
    frames, share = clip(7, frames=14), 0.3
    method = VCast(keep_ratio=share, still=still)
    state = method.new_state()
    outs = [method.compress(tokens, state) for tokens in frames]
    assert len(outs[0]) == 0 and method.num_held(state) == 1
    last = method.flush(state)
    assert last is not None and method.num_held(state) == 0
    means = [rows(tokens).mean(0) / np.linalg.norm(rows(tokens).mean(0)) for tokens in frames]
    weights: list[float] = []
    over = 0.0
    for number, out in enumerate([*outs[1:], last]):
        x = rows(frames[number])
        curve = 1.0
        if 0 < number < len(frames) - 1:
            to, away = means[number] - means[number - 1], means[number + 1] - means[number]
            moves = min(np.linalg.norm(to), np.linalg.norm(away)) > still
            curve = 1 - cosine(to, away) if moves else 0.0
        weights.append(math.exp(curve / 0.7))
        wanted = min(TOKENS, max(1.0, TOKENS * share * weights[-1] / np.mean(weights))) + over
        count = min(TOKENS, max(1, round(wanted)))
        over = min(1.0, max(-1.0, wanted - count))
        length = np.linalg.norm(x, axis=1)
        length = (length - length.min()) / (length.max() - length.min())
        score = np.array([1 - cosine(row, means[number]) for row in x]) + length
        assert out.frame.tolist() == [number] * count and out.slot.tolist() == highest(score, count)


def test_vcast_gives_a_frame_with_what_belongs_to_it() -> None:
    """The frame that it waited for lends nothing to it; one of another size ends the clip, as the last frame does."""
    made, method = torch.Generator().manual_seed(5), VCast(keep_ratio=0.5)
    frames = [
        replace(
            VisualTokens.of_frame(torch.randn(side * side, 8, generator=made), (side, side), number, float(number)),
            whole={"global": torch.full((1, 2, 8), float(number))},
        )
        for number, side in enumerate((4, 4, 3, 3))
    ]
    state, ended = method.new_state(), method.new_state()
    outs = [method.compress(tokens, state) for tokens in frames]
    assert [len(out) > 0 for out in outs] == [False, True, True, True]
    for number, out in enumerate(outs[1:]):
        assert out.frame.unique().tolist() == [number] and float(out.whole["global"].unique()) == number
    for tokens in frames[:2]:
        method.compress(tokens, ended)
    last = method.flush(ended)
    assert last is not None and torch.equal(last.features, outs[2].features)


def test_vcast_does_not_turn_noise_into_a_budget() -> None:
    """Where nothing happens but noise the published curvature is highest; with a gate the turn gets the tokens."""
    make = torch.Generator().manual_seed(3)
    base, other = torch.randn(TOKENS, DIM, generator=make), torch.randn(TOKENS, DIM, generator=make)
    frames = []
    for number in range(12):
        shown = base if number < 6 else other
        noisy = shown + 0.002 * torch.randn(TOKENS, DIM, generator=make)
        frames.append(VisualTokens.of_frame(noisy, (3, 4), number, float(number)))

    def counts(method: VCast) -> list[int]:
        return [len(out) for out in run(method, frames)][1:]

    published, gated = counts(VCast(still=0.0)), counts(VCast())
    assert sum(published[1:5]) > sum(gated[1:5])
