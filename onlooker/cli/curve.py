"""Lag and cost against the number of streams, as a picture."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onlooker.core.errors import InputError

if TYPE_CHECKING:
    from onlooker.cli.trial import Demand


def check_can_draw() -> None:
    """Raise `InputError` unless there is something to draw with."""
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise InputError("a picture needs matplotlib", given="--picture", do="pip install 'onlooker[eval]'") from error


def draw(pipelines: Mapping[str, Mapping[str, Any]], demand: "Demand | None") -> bytes:
    """A PNG: above, the lag that 95 % of the frames stay within; below, what a frame costs. What did not hold is
    hollow, and what never ended is left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (lag, cost) = pyplot.subplots(2, 1, figsize=(8, 6.4), sharex=True)
    for number, (name, found) in enumerate(pipelines.items()):
        trials = sorted(found["trials"], key=lambda trial: trial["streams"])
        colour = f"C{number % 10}"
        for axes, key in ((lag, "frame_lag_p95_s"), (cost, "step_ms_a_frame")):
            points = [t for t in trials if t[key] is not None and 0 < t[key] < float("inf")]
            axes.plot([t["streams"] for t in points], [t[key] for t in points], color=colour, label=name)
            for holds in (True, False):
                some = [t for t in points if t["holds"] is holds]
                face = colour if holds else "white"
                axes.plot([t["streams"] for t in some], [t[key] for t in some], "o", color=colour, mfc=face)
    if demand is not None:
        lag.axhline(demand.frame_lag_s, color="grey", linestyle=":")
    lag.set_ylabel("frame lag, p95, s")
    lag.set_yscale("log")
    cost.set_ylabel("ms of a step per frame")
    cost.set_xlabel("live streams (hollow: they did not hold)")
    for axes in (lag, cost):
        axes.grid(alpha=0.3)
        axes.set_xscale("log")
    lag.legend(fontsize=8)
    out = io.BytesIO()
    figure.tight_layout()
    figure.savefig(out, format="png", dpi=110)
    pyplot.close(figure)
    return out.getvalue()
