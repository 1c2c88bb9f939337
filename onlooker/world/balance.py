"""How often a true answer may be used, so that neither its wording nor the time tells it."""

from onlooker.world.balance_weights import WEIGHTS
from onlooker.world.lexicon import COUNTS

BORDERS_S = (8.0, 16.0, 24.0, 40.0)
"""Borders of the stretches of ask time that have weights of their own."""


def stretch(time_s: float) -> int:
    """Number of the stretch that an ask time lies in."""
    return sum(time_s >= border for border in BORDERS_S)


def weight(level: str, form: str, answer: str, time_s: float) -> float:
    """Weight of a true answer, 0 to 1; counts that are too rare to balance have none."""
    rows = WEIGHTS.get(level, {}).get(form)
    if rows is None:
        return 1.0
    return rows.get(f"{stretch(time_s)}/{answer}", 0.0 if answer in COUNTS else 1.0)
