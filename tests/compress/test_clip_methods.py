"""Methods that look at a window, against plain derivations over the whole clip, token by token."""

import itertools
import math

import numpy as np
import pytest
import torch
from test_causal_compressors import cosine, density_centres
from test_merging_and_periodic import merged_plainly

from onlooker.compress import STTM, FastVID, FlashVID, HoliTom, LongVLM, PruneVid, VidCom2
from onlooker.core.contracts import Compressor
from onlooker.core.tokens import VisualTokens

TOKENS, DIM = 12, 6


def clip(seed: int, frames: int = 8, change: float = 0.3, cuts: tuple[int, ...] = (5,)) -> list[VisualTokens]:
    """A scene in which some tokens are new in every frame, and others with it at a cut."""
    make = torch.Generator().manual_seed(seed)
    base, shown = torch.randn(TOKENS, DIM, generator=make) + 2, []
    for number in range(frames):
        new = torch.rand(TOKENS, 1, generator=make) < (1.0 if number in cuts else change)
        fresh = torch.randn(TOKENS, DIM, generator=make) + (2 if number < min(cuts, default=99) else -1)
        base = torch.where(new, fresh, base + 0.1 * torch.randn(TOKENS, DIM, generator=make))
        extras = {"saliency": torch.rand(TOKENS, generator=make) / TOKENS}
        about = {"global": torch.randn(1, 3, DIM, generator=make)}
        shown.append(VisualTokens.of_frame(base, (3, 4), number, float(number), extras, about))
    return shown


def given_out(method: Compressor, frames: list[VisualTokens]) -> VisualTokens:
    """What comes out with the last of a window's frames, and nothing before."""
    state = method.new_state()
    outs = [method.compress(tokens, state) for tokens in frames]
    assert [len(out) for out in outs[:-1]] == [0] * (len(frames) - 1) and method.num_held(state) == 0
    return outs[-1]


def places(out: VisualTokens) -> list[tuple[int, int]]:
    return list(zip(out.frame.tolist(), out.slot.tolist(), strict=True))


def rows(tokens: VisualTokens) -> np.ndarray:
    return tokens.features.double().numpy()


def parts_of(x: np.ndarray, least: int, below: float) -> list[list[int]]:
    """Segments by lists."""
    means = x.mean(1)
    alike = [cosine(a, b) for a, b in itertools.pairwise(means)]
    cuts = {n for n in range(len(alike)) if alike[n] < below}
    for n in sorted(range(len(alike)), key=lambda n: alike[n]):
        if len(cuts) + 1 < least:
            cuts.add(n)
    parts: list[list[int]] = [[]]
    for n in range(len(x)):
        parts[-1].append(n)
        if n in cuts:
            parts.append([])
    return [part for part in parts if part]


# ----------------------------------------------------------------------------------------------------------- longvlm


@pytest.mark.proves("longvlm", 1)
@pytest.mark.parametrize("seed", range(3))
def test_longvlm_merges_a_segment_as_with_lists(seed: int) -> None:
    frames = clip(seed, 10)
    out = given_out(LongVLM(keep_ratio=9 / 120), frames)
    flat = torch.cat([tokens.features for tokens in frames])
    features, weights, first = merged_plainly(list(flat), 9)
    assert [f * TOKENS + s for f, s in places(out)] == first and out.weight.tolist() == weights
    assert out.weight.sum() == 120 and torch.allclose(out.features, torch.stack(features), atol=1e-5)


def test_longvlm_puts_the_streams_mean_global_rows_before_a_segment() -> None:
    frames, method = clip(3, 8), LongVLM(frames=4, keep_ratio=0.1, global_rows=True)
    state = method.new_state()
    outs = [out for tokens in frames if len(out := method.compress(tokens, state))]
    assert method.needs == {"global"} and len(outs) == 2
    for number, out in enumerate(outs):
        seen = torch.stack([tokens.whole["global"][0] for tokens in frames[: 4 * (number + 1)]]).mean(0)
        put = out.weight == 0
        assert torch.allclose(out.features[put], seen, atol=1e-5) and out.weight.sum() == 48
        assert (out.frame[put] == 4 * number).all() and len(out) == 4 + 3


# ---------------------------------------------------------------------------------------------------------- flashvid


@pytest.mark.proves("flashvid", 1)
@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize(("seed", "share"), [(0, 0.3), (1, 0.2), (2, 0.5)])
def test_flashvid_on_a_whole_clip_equals_a_derivation_with_lists(seed: int, share: float, event: bool) -> None:
    frames = clip(seed)
    out = given_out(FlashVID(frames=8, keep_ratio=share, event=event, alike=0.8), frames)
    x = np.stack([rows(tokens) for tokens in frames])
    salience = np.stack([tokens.extras["saliency"].double().numpy() for tokens in frames])
    budget = math.ceil(TOKENS * share * 1.25)
    diverse = math.ceil(0.7 * budget)
    trees: dict[tuple[int, int], list[tuple[int, int]]] = {}
    chosen: set[tuple[int, int]] = set()
    for part in parts_of(x, 2, 0.9):
        for f in part:
            weight = salience[f]
            if event:
                weight = weight * np.maximum(0, [np.mean([cosine(t, x[c].mean(0)) for c in part]) for t in x[f]])
            away = np.array([[(1 - cosine(a, b)) for b in x[f]] for a in x[f]]) * weight[None]
            least = [min(away[i, j] for i in range(TOKENS) if i != j) for j in range(TOKENS)]
            picks = [int(np.argmax(least))]
            while len(picks) < diverse:
                picks.append(
                    max((j for j in range(TOKENS) if j not in picks), key=lambda j: min(away[i, j] for i in picks))
                )
            chosen |= {(f, j) for j in picks}
        links = {}
        for f in part[1:]:
            before = [j for j in range(TOKENS) if (f - 1, j) not in chosen]
            for n in range(TOKENS):
                if (f, n) not in chosen:
                    best = max(before, key=lambda j: cosine(x[f - 1, j], x[f, n]))
                    if cosine(x[f - 1, best], x[f, n]) > 0.8:
                        links[f, n] = (cosine(x[f - 1, best], x[f, n]), (f - 1, best))
        rest = [(f, n) for f in part for n in range(TOKENS) if (f, n) not in chosen]
        most = max(0, len(rest) - (budget - diverse) * len(part))
        allowed = sorted(links, key=lambda token: -links[token][0])[:most]
        for token in rest:
            root = token
            while root in allowed:
                root = links[root][1]
            trees.setdefault(root, []).append(token)
    wanted: dict[tuple[int, int], tuple[np.ndarray, int]] = {token: (x[token], 1) for token in chosen}
    for f in range(8):
        roots = sorted(root for root in trees if root[0] == f)
        means = np.zeros((TOKENS, DIM))
        for root in roots:
            means[root[1]] = np.mean([x[token] for token in trees[root]], axis=0)
        centres = density_centres(means, [root[1] for root in roots], min(len(roots), budget - diverse))
        groups: dict[int, list[tuple[int, int]]] = {c: [] for c in centres}
        for root in roots:
            n = root[1]
            own = n if n in centres else min(centres, key=lambda c: np.linalg.norm(means[n] - means[c]))
            groups[own] += trees[root]
        for c, members in groups.items():
            wanted[f, c] = (np.mean([x[token] for token in members], axis=0), len(members))
    assert places(out) == sorted(wanted)
    for place, row, weight in zip(places(out), rows(out), out.weight.tolist(), strict=True):
        assert np.allclose(row, wanted[place][0], atol=1e-5) and weight == wanted[place][1]
    assert out.weight.sum() == 8 * TOKENS or budget == diverse
    assert (out.weight > 1).any()


# ----------------------------------------------------------------------------------------------------------- vidcom2


@pytest.mark.parametrize("share", [0.1, 0.25, 0.6])
def test_vidcom2_equals_a_derivation_with_lists(share: float) -> None:
    frames = clip(5)
    out = given_out(VidCom2(frames=8, keep_ratio=share), frames)
    x = np.stack([rows(tokens) for tokens in frames])
    flat = x.reshape(-1, DIM)
    steady = np.argsort(flat.var(0), kind="stable")[: DIM // 2]
    unit = x[..., steady] / np.linalg.norm(x[..., steady], axis=-1, keepdims=True)

    def alike(anchor: np.ndarray) -> np.ndarray:
        away = ((unit - anchor) ** 2).sum(-1)
        return sum(np.exp(-away / (2 * scale)) for scale in (0.125, 0.25, 0.5, 1.0, 2.0))

    of_clip, of_frame = alike(unit.reshape(-1, DIM // 2).mean(0)), alike(unit.mean(1, keepdims=True))
    raw = np.exp((-of_clip.mean(1) - (-of_clip.mean(1)).max()) / 0.01)
    p = raw / raw.sum()
    wanted = []
    for f in range(8):
        count = max(1, round(min(1.0, share * (1 + p[f] - p.mean())) * TOKENS))
        order = np.argsort((of_clip + of_frame)[f], kind="stable")[:count]
        wanted += [(f, int(n)) for n in sorted(order)]
    assert places(out) == wanted


# ----------------------------------------------------------------------------------------------------------- fastvid


@pytest.mark.parametrize(("seed", "share"), [(0, 0.5), (1, 0.5), (2, 0.75)])
def test_fastvid_equals_a_derivation_with_lists(seed: int, share: float) -> None:
    frames = clip(seed)
    out = given_out(FastVID(frames=8, keep_ratio=share), frames)
    x = np.stack([rows(tokens) for tokens in frames])
    salience = np.stack([tokens.extras["saliency"].double().numpy() for tokens in frames])
    budget = int(TOKENS * share)
    context = int(0.4 * budget)
    wanted: dict[tuple[int, int], tuple[np.ndarray, int]] = {}
    for part in parts_of(x, round(8 * 7 / 32) + 1, 0.9):
        salient = set()
        for f in part:
            order = sorted(range(TOKENS), key=lambda n, f=f: (-salience[f, n], n))[: budget - context]
            salient |= {(f, n) for n in order}
        anchors = sorted(part[::-1][::4])
        total, targets = context * len(part), []
        for place, f in enumerate(anchors):
            each = total // len(anchors) + (place < total % len(anchors))
            others = [n for n in range(TOKENS) if (f, n) not in salient]
            targets += [(f, n) for n in density_centres(x[f], others, each, k=4)]
        groups: dict[tuple[int, int], list[np.ndarray]] = {t: [] for t in targets}
        for f in part:
            for n in range(TOKENS):
                if targets and (f, n) not in salient and (f, n) not in targets:
                    groups[max(targets, key=lambda t: cosine(x[t], x[f, n]))].append(x[f, n])
        wanted |= {token: (x[token], 1) for token in salient}
        for t, joined in groups.items():
            own = max(1 / (len(joined) + 1), 0.6)
            row = own * x[t] + (1 - own) * np.mean(joined, axis=0) if joined else x[t]
            wanted[t] = (row, 1 + len(joined))
    assert places(out) == sorted(wanted)
    for place, row, weight in zip(places(out), rows(out), out.weight.tolist(), strict=True):
        assert np.allclose(row, wanted[place][0], atol=1e-5) and weight == wanted[place][1]


# ---------------------------------------------------------------------------------------------------------- prunevid


def test_prunevid_equals_a_derivation_with_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    from onlooker.compress import prunevid

    monkeypatch.setattr(prunevid, "FEW", 3)  # a frame has few tokens here
    merged_over_time = 0
    for seed in range(3):
        frames = clip(seed, change=0.1)
        out = given_out(PruneVid(frames=8), frames)
        x = np.stack([rows(tokens) for tokens in frames])
        means = x.mean(1)
        centres = density_centres(means, list(range(8)), 2)
        label = [
            f if f in centres else min(centres, key=lambda c, f=f: np.linalg.norm(means[f] - means[c]))
            for f in range(8)
        ]
        scenes: list[list[int]] = [[0]]
        for f in range(1, 8):
            if label[f] == label[f - 1]:
                scenes[-1].append(f)
            else:
                scenes.append([f])
        wanted: dict[tuple[int, int], tuple[np.ndarray, int]] = {}

        def spread(f: int, tokens: dict[int, list[np.ndarray]], into: dict = wanted) -> None:
            mean = np.zeros((TOKENS, DIM))
            for n, sources in tokens.items():
                mean[n] = np.mean(sources, axis=0)
            count = len(tokens) if len(tokens) <= 3 else max(1, int(0.5 * len(tokens)))
            found = density_centres(mean, sorted(tokens), count)
            groups: dict[int, list[np.ndarray]] = {c: [] for c in found}
            for n, sources in tokens.items():
                own = n if n in found else min(found, key=lambda c: np.linalg.norm(mean[n] - mean[c]))
                groups[own] += sources
            for c, sources in groups.items():
                into[f, c] = (np.mean(sources, axis=0), len(sources))

        for scene in scenes:
            still = []
            for n in range(TOKENS):
                pairs = [cosine(x[a, n], x[b, n]) for a in scene for b in scene if a < b]
                if pairs and np.mean(pairs) > 0.8:
                    still.append(n)
            merged_over_time += len(still)
            if still:
                spread(scene[0], {n: [x[f, n] for f in scene] for n in still})
            for f in scene:
                if moving := {n: [x[f, n]] for n in range(TOKENS) if n not in still}:
                    spread(f, moving)
        assert places(out) == sorted(wanted)
        for place, row, weight in zip(places(out), rows(out), out.weight.tolist(), strict=True):
            assert np.allclose(row, wanted[place][0], atol=1e-5) and weight == wanted[place][1]
        assert out.weight.sum() == 8 * TOKENS
    assert merged_over_time


# ----------------------------------------------------------------------------------------------------------- holitom


def divisions(frames: int) -> list[list[list[int]]]:
    """Every way to cut a clip into parts."""
    found = []
    for cuts in range(2 ** (frames - 1)):
        parts: list[list[int]] = [[0]]
        for f in range(1, frames):
            if cuts >> (f - 1) & 1:
                parts.append([f])
            else:
                parts[-1].append(f)
        found.append(parts)
    return found


@pytest.mark.parametrize(("seed", "share"), [(0, 0.3), (1, 0.3), (2, 0.15)])
def test_holitom_equals_a_search_over_all_divisions(seed: int, share: float) -> None:
    frames = clip(seed, change=0.15)
    out = given_out(HoliTom(frames=8, keep_ratio=share), frames)
    x = np.stack([rows(tokens) for tokens in frames])
    salience = np.stack([tokens.extras["saliency"].double().numpy() for tokens in frames])

    def still(part: list[int]) -> list[int]:
        steps = [(a, a + 1) for a in part[:-1]]
        return [n for n in range(TOKENS) if steps and all(cosine(x[a, n], x[b, n]) > 0.8 for a, b in steps)]

    gains = [(sum(len(still(part)) * (len(part) - 1) for part in parts), parts) for parts in divisions(8)]
    best = max(gain for gain, _ in gains)
    matching = []
    for gain, parts in gains:
        if gain != best:
            continue
        owners = {(part[0], n): [(f, n) for f in part] for part in parts for n in still(part)}
        moving = [(f, n) for part in parts for f in part for n in range(TOKENS) if n not in still(part)]
        ratio = min(1.0, share * 8 * TOKENS / (len(owners) + len(moving)))
        wanted: dict[tuple[int, int], tuple[np.ndarray, int]] = {}
        for f in range(8):
            own = [n for g, n in moving if g == f]
            count = min(len(own), max(1, int(ratio * len(own) + 1e-6)))
            for n in sorted(own, key=lambda n, f=f: (-salience[f, n], n))[:count]:
                wanted[f, n] = (x[f, n], 1)
            means = np.zeros((TOKENS, DIM))
            static = sorted(n for g, n in owners if g == f)
            for n in static:
                means[n] = np.mean([x[token] for token in owners[f, n]], axis=0)
            centres = density_centres(means, static, min(len(static), max(1, int(ratio * len(static) + 1e-6))))
            groups: dict[int, list[int]] = {c: [] for c in centres}
            for n in static:
                if n not in centres:
                    groups[min(centres, key=lambda c, n=n: np.linalg.norm(means[n] - means[c]))].append(n)
            for c, joined in groups.items():
                row = 0.6 * means[c] + 0.4 * np.mean([means[n] for n in joined], axis=0) if joined else means[c]
                wanted[f, c] = (row, sum(len(owners[f, n]) for n in [c, *joined]))
        matching.append(wanted)
    found = [wanted for wanted in matching if sorted(wanted) == places(out)]
    assert found, "no best division gives these places"
    for place, row, weight in zip(places(out), rows(out), out.weight.tolist(), strict=True):
        assert np.allclose(row, found[0][place][0], atol=1e-5) and weight == found[0][place][1]
    assert (out.weight > 1).any()


# -------------------------------------------------------------------------------------------------------------- sttm


def halves(places: list[list[int]], roots: int = 4) -> list[list[list[int]]]:
    """Parts of a side, level by level, the finest first."""
    levels = [places]
    while len(levels[-1]) > roots:
        parts, odd = levels[-1], len(levels[-1]) % 2
        aside = [parts[0]] if odd else []
        levels.append(aside + [parts[n] + parts[n + 1] for n in range(odd, len(parts), 2)])
    return levels


def squares(x: np.ndarray, rows: int, cols: int, space: float) -> list[tuple[list[int], np.ndarray]]:
    """A frame's quadtree by recursion: tokens of each square that is one, and its mean."""
    sides = halves([[n] for n in range(rows)]), halves([[n] for n in range(cols)])
    depth = max(map(len, sides)) - 1

    def parts(level: int, row: list[int], col: list[int]) -> list[tuple[list[int], list[int]]]:
        finer = [side[min(level - 1, len(side) - 1)] for side in sides]
        inside = ([one for one in finer[k] if set(one) <= set((row, col)[k])] for k in (0, 1))
        some_rows, some_cols = inside
        return [(r, c) for r in some_rows for c in some_cols]

    def mean(level: int, row: list[int], col: list[int]) -> np.ndarray:
        if level == 0:
            return x[row[0] * cols + col[0]]
        return np.mean([mean(level - 1, r, c) for r, c in parts(level, row, col)], axis=0)

    def cut(level: int, row: list[int], col: list[int]) -> list[tuple[list[int], np.ndarray]]:
        whole = mean(level, row, col)
        if level == 0:
            return [([row[0] * cols + col[0]], whole)]
        inner = parts(level, row, col)
        if all(cosine(mean(level - 1, r, c), whole) >= space for r, c in inner):
            return [([r * cols + c for r in row for c in col], whole)]
        return [one for r, c in inner for one in cut(level - 1, r, c)]

    top = [side[-1] for side in sides]
    return [one for row in top[0] for col in top[1] for one in cut(depth, row, col)]


@pytest.mark.parametrize(("grid", "space", "time"), [((7, 9), 0.8, 0.6), ((8, 8), 0.9, 0.9), ((5, 3), 0.7, 0.5)])
def test_sttm_equals_a_derivation_by_recursion(grid: tuple[int, int], space: float, time: float) -> None:
    make = torch.Generator().manual_seed(sum(grid))
    base = torch.randn(1, DIM, generator=make) + 0.7 * torch.randn(grid[0] * grid[1], DIM, generator=make)
    frames = []
    for number in range(5):
        base = base + 0.2 * torch.randn(base.shape, generator=make)
        frames.append(VisualTokens.of_frame(base, grid, number, float(number)))
    out = given_out(STTM(frames=5, space=space, time=time), frames)
    x = np.stack([rows(tokens) for tokens in frames])
    found = [squares(one, *grid, space) for one in x]
    owner = [{n: k for k, (tokens, _) in enumerate(one) for n in tokens} for one in found]
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    root: dict[tuple[int, int], tuple[int, int]] = {}
    for f, one in enumerate(found):
        for k, (tokens, value) in enumerate(one):
            root[f, k] = (f, k)
            if f:
                near = {n: cosine(value, found[f - 1][owner[f - 1][n]][1]) for n in sorted(tokens)}
                best = max(near, key=lambda n, near=near: (round(near[n] * 2**15), -n))
                if near[best] >= time:
                    root[f, k] = root[f - 1, owner[f - 1][best]]
            members.setdefault(root[f, k], []).extend((f, n) for n in tokens)
    wanted = {(f, min(found[f][k][0])): tokens for (f, k), tokens in members.items()}
    assert places(out) == sorted(wanted) and out.weight.sum() == 5 * len(base)
    assert any(len(tokens) > 1 for one in found for tokens, _ in one), "no square was one"
    for place, row, weight in zip(places(out), rows(out), out.weight.tolist(), strict=True):
        assert weight == len(wanted[place])
        assert np.allclose(row, np.mean([x[token] for token in wanted[place]], axis=0), atol=1e-5)
