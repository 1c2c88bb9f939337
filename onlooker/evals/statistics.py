"""Intervals and tests where questions come in clusters: those on one video go together, and near 0 and 1 few are wrong.

What each is worth is shown by simulations with known truth (`tests/evals/test_statistics.py`): how often an interval
holds the truth, how often a test says "better" of equals.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
FLIPS = 9999
"""Ways to flip signs that are tried where there are too many for all of them."""
MOST_EXACT = 13
"""With up to so many clusters that differ, all ways to flip their signs are gone through."""
PRIOR_CORRELATION, PRIOR_CLUSTERS = 0.1, 4.0
"""How much the questions of one video are taken to go together before any is seen to, and what that guess weighs: as
much as so many videos that hold both right and wrong answers. Near 0 and 1 there are few of those, and none at all in a
perfect score."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedGap:
    """A mean difference of pairs, its interval, and how likely one as large is among equals."""

    gap: float
    low: float
    high: float
    p: float
    spread: float
    """Standard error of the gap, from clusters."""
    clusters: int


def estimate(values: Sequence[float], clusters: Sequence[str], strata: Sequence[str] | None = None) -> Estimate:
    """The mean of `values` in [0, 1], each of a cluster, with its 95 % interval; nan of nothing.

    With `strata` (one for each value) it is the mean over the strata's means, which weigh the same however many values
    they have. The interval is Wilson's at the effective number of values (Korn and Graubard, 1998): what the variance
    between clusters says the values are worth, held to a guess where few clusters tell (`PRIOR_CORRELATION`).
    """
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan)
    worth, (cluster, num_clusters) = np.asarray(values, float), _numbered(clusters)
    stratum, num_strata = _numbered(strata) if strata is not None else (np.zeros(len(worth), int), 1)
    sizes = np.bincount(stratum, minlength=num_strata)
    means = np.bincount(stratum, worth, num_strata) / sizes
    mean = float(means.mean())
    nominal = num_strata**2 / (1.0 / sizes).sum()
    influence = np.bincount(cluster, (worth - means[stratum]) / (num_strata * sizes[stratum]), num_clusters)
    variance = num_clusters / max(1, num_clusters - 1) * float(influence @ influence)
    effective = nominal / _design_effect(worth, cluster, num_clusters, variance, mean * (1 - mean) / nominal)
    return Estimate(mean, *_wilson(mean, effective, _quantile(num_clusters - 1 + PRIOR_CLUSTERS)))


def paired_gap(gaps: Sequence[float], clusters: Sequence[str], seed: int = 0) -> PairedGap:
    """The mean of differences in [-1, 1] between two systems on the same questions, each of a cluster.

    `p` is that of the sign-flip test: were the systems alike, each cluster's total could as well have the other sign.
    The interval holds the gaps that the same test does not reject, and is never narrower than what is still possible
    when no answer at all differs among so many.
    """
    if not len(gaps):
        return PairedGap(math.nan, -math.inf, math.inf, 1.0, math.nan, 0)
    cluster, num_clusters = _numbered(clusters)
    totals = np.bincount(cluster, np.asarray(gaps, float), num_clusters)
    sizes = np.bincount(cluster, minlength=num_clusters).astype(float)
    count = sizes.sum()
    gap = float(totals.sum() / count)
    rests = totals - gap * sizes
    spread = math.sqrt(num_clusters / max(1, num_clusters - 1) * float(rests @ rests)) / count
    signs = _signs(num_clusters, seed)
    flipped, grown = signs @ totals, signs @ sizes

    def p_of(shift: float) -> float:
        return _as_large(flipped - shift * grown, float(totals.sum()) - shift * count)

    differing = totals[totals != 0]
    p = _as_large(_signs(len(differing), seed) @ differing, totals.sum()) if len(differing) <= MOST_EXACT else p_of(0.0)
    least = _least_half_width(sizes)
    low = min(gap - least, _edge(p_of, gap, -1.0))
    high = max(gap + least, _edge(p_of, gap, 1.0))
    return PairedGap(gap, max(-1.0, low), min(1.0, high), p, float(max(spread, least / _normal())), num_clusters)


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm, 1979): together they reject a truth in 5 % of tables at most."""
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = highest
    return corrected


def detectable(spread: float, tests: int, power: float = 0.8) -> float:
    """The smallest true gap that is found with this power, at a standard error and a number of tests."""
    normal = NormalDist()
    return (normal.inv_cdf(1 - (1 - CONFIDENCE) / (2 * max(1, tests))) + normal.inv_cdf(power)) * spread


def _numbered(names: Sequence[str]) -> tuple[np.ndarray, int]:
    unique, numbers = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    return numbers, len(unique)


def _design_effect(
    worth: np.ndarray, cluster: np.ndarray, num_clusters: int, variance: float, of_lone_values: float
) -> float:
    """How many values in clusters are worth one that stands alone."""
    sizes = np.bincount(cluster, minlength=num_clusters).astype(float)
    totals = np.bincount(cluster, worth, num_clusters)
    telling = 0 if num_clusters == 1 else min((totals > 1e-12).sum(), (totals < sizes - 1e-12).sum())
    guess = 1 + PRIOR_CORRELATION * (float(sizes @ sizes) / sizes.sum() - 1)
    seen = variance / of_lone_values if of_lone_values > 0 else 0.0
    return max(0.05, (PRIOR_CLUSTERS * guess + telling * seen) / (PRIOR_CLUSTERS + telling))


def _wilson(mean: float, count: float, z: float) -> tuple[float, float]:
    centre, scale = mean + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(mean * (1 - mean) / count + (z / (2 * count)) ** 2)
    low, high = (centre - half) / scale, (centre + half) / scale
    return 0.0 if mean == 0 else float(max(0.0, low)), 1.0 if mean == 1 else float(min(1.0, high))


def _normal() -> float:
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def _quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5), good to 0.01 from 4 degrees of freedom on."""
    z = _normal()
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


@lru_cache(maxsize=4)
def _signs(count: int, seed: int) -> np.ndarray:
    """Signs of so many clusters, `[ways, clusters]`: every way for few, else many by chance; the first is all plus."""
    if count <= MOST_EXACT:
        return 1.0 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    drawn = np.random.default_rng(seed).integers(0, 2, (FLIPS, count)) * 2.0 - 1.0
    return np.concatenate([np.ones((1, count)), drawn])


def _as_large(flipped: np.ndarray, seen: float) -> float:
    """Share of the flipped totals that are at least as far from zero as the one seen."""
    return float((np.abs(flipped) >= abs(seen) - 1e-9).mean())


def _least_half_width(sizes: np.ndarray) -> float:
    """How far the gap may be from what was seen when nobody differs: Wilson's bound for a share that was never seen."""
    guess = 1 + PRIOR_CORRELATION * (float(sizes @ sizes) / sizes.sum() - 1)
    z = _normal()
    return z * z / (sizes.sum() / guess + z * z)


def _edge(p_of: Callable[[float], float], gap: float, side: float) -> float:
    """The gap furthest from the one seen, on one side, that the test does not reject."""
    inner, outer = gap, gap + side * 2.0
    for _ in range(40):
        middle = (inner + outer) / 2
        inner, outer = (middle, outer) if p_of(middle) > 1 - CONFIDENCE else (inner, middle)
    return inner
