"""Tables: every number beside the run it came from."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onlooker.evals.compare import Row, power_note

HEADERS = (
    "run", "accuracy", "95 % interval", "macro", "answered only", "published", "coverage", "tokens/s",
    "vision GFLOP/s", "held", "against {}", "lane",
)  # fmt: skip
AGAINST = HEADERS.index("against {}")


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The rows of a table as text."""
    return [
        [
            row.run.settings.label,
            percent(row.score.accuracy),
            f"{percent(row.score.low)} to {percent(row.score.high)}",
            percent(row.score.macro),
            percent(row.score.answered_only),
            f"{row.published[0]} {percent(row.published[1])}" if row.published else "-",
            f"{row.score.answered} of {row.score.asked}",
            f"{row.tokens_per_second:.1f} (at most {row.budget.most_tokens_per_second:.1f})",
            f"{row.budget.vision_gflop_per_second:.2f}",
            f"{row.budget.most_bytes / 1e6:.1f} MB",
            against(row),
            row.run.lane,
        ]
        for row in rows
    ]


def headers(rows: Sequence[Row]) -> list[str]:
    """The heads of the columns, with the name of the reference."""
    return [name.format(reference_label(rows)) for name in HEADERS]


def reference_label(rows: Sequence[Row]) -> str:
    """What the run is called that the others are compared with."""
    return next((row.run.settings.label for row in rows if row.against is None), "-")


def against(row: Row) -> str:
    """The paired difference in words; a tie is called a tie."""
    if row.against is None:
        return "-"
    found = row.against
    if not found.questions:
        return "nothing in common"
    budget = "" if row.same_budget else ", other budget"
    likely = found.p if found.corrected_p is None else found.corrected_p
    sure = "p < 0.001" if likely < 0.001 else f"p {likely:.3f}"
    gap = f"{found.gap * 100:+.1f}, {found.low * 100:+.1f} to {found.high * 100:+.1f}"
    return f"{found.verdict} ({gap}; {sure}{budget})"


def footnote(rows: Sequence[Row]) -> str:
    """What a table is about and how far it can be trusted, in a few sentences."""
    clips = sorted({f"{row.run.settings.suite}, {row.run.settings.clips}" for row in rows})
    videos = max(len({outcome.query.video for outcome in row.run.outcomes}) for row in rows)
    asked = max(len(row.run.outcomes) for row in rows)
    return " ".join(filter(None, [
        f"{'; '.join(clips)}: {asked} questions on {videos} videos.",
        "Accuracy is over all questions, each weighs the same, and one that failed is wrong; macro is the mean of the "
        "categories. Verdicts come from flipping the signs of whole videos.",
        power_note(rows),
    ]))  # fmt: skip


def markdown(rows: Sequence[Row], root: Path) -> str:
    """A Markdown table; names link to their run folders, as seen from `root`."""
    lines = ["| " + " | ".join(headers(rows)) + " |", "|" + "---|" * len(HEADERS)]
    for row, texts in zip(rows, cells(rows), strict=True):
        link = f"[{texts[0].replace('|', '/')}]({link_to(row, root)})"
        lines.append("| " + " | ".join([link, *texts[1:]]) + " |")
    return "\n".join([*lines, "", footnote(rows)])


def link_to(row: Row, root: Path) -> str:
    """The way from `root` to the run folder."""
    return Path(os.path.relpath(row.run.folder.resolve(), root.resolve())).as_posix()


def row_dict(row: Row) -> dict[str, Any]:
    """A row for programs."""
    return {
        "run": str(row.run.folder),
        "settings": row.run.settings.as_dict(),
        "lane": row.run.lane,
        "score": dataclasses.asdict(row.score) | {"coverage": row.score.coverage},
        "published": {"name": row.published[0], "value": row.published[1]} if row.published else None,
        "clips": row.run.settings.clips,
        **dataclasses.asdict(row.budget),
        "against": dataclasses.asdict(row.against) | {"verdict": row.against.verdict} if row.against else None,
        "same_budget": row.same_budget,
    }


def percent(share: float) -> str:
    """A share as people read it."""
    return "-" if math.isnan(share) else f"{share:.1%}"
