"""What the levels do not ask: occlusion, rates between frames, faces, side text, evidence of every age, each in turn.

A question comes from a short clip of its family (`world/stories`); `meta["story"]` says which. Rates need 8 frames a
second (`--fps 8`). Side text goes with the video; whether a model is shown it is the method's business.
"""

from collections.abc import Iterator

from onlooker.evals.item import Item
from onlooker.evals.suites._episodes import story_item

FAMILIES = ("occlusion", "rates", "faces", "spoken", "ages")
LEVEL = "L2"


def items(limit: int, seed: int = 0, level: str = LEVEL) -> Iterator[Item]:
    """`limit` questions, the families in turn, on the ground of a level (L2 by default); of a clip all of its questions
    are asked, or the first of them."""
    left, place = limit, 0
    while left > 0:
        family, number = FAMILIES[place % len(FAMILIES)], seed + place // len(FAMILIES)
        item = story_item(family, number, "pocketworld_stories", level, left)
        yield item
        left, place = left - len(item.queries), place + 1
