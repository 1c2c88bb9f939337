"""In the form of StreamGaze: a green dot shows where the wearer of the camera looks; past, present and alert questions.

Alerts are standing requests, polled once, where a yes is as likely as a no at every delay.
"""

from collections.abc import Iterator

from onlooker.evals.item import Item
from onlooker.evals.suites._episodes import story_item

LEVEL = "L1"


def items(limit: int, seed: int = 0) -> Iterator[Item]:
    """`limit` questions, five on each clip."""
    left, number = limit, seed
    while left > 0:
        item = story_item("gaze", number, "pocketworld_gaze", LEVEL, left)
        yield item
        left, number = left - len(item.queries), number + 1
