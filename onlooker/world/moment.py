"""What can be said for certain at one time: the state of the last 1.2 seconds, and unique names for things."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from onlooker.world.lexicon import COLOUR_NAMES, LAMP_ID, SIGN_ID
from onlooker.world.scene import Scene
from onlooker.world.script import Seen, Sprite, step_at

SETTLE_S = 1.2
"""Changes younger than this are not asked about: one frame a second must have shown them."""
LONG_S = 60.0
"""Beyond this many seconds shapes recur, and "the star" means the one that is visible."""


class Candidate(NamedTuple):
    """A question that could be asked: its form, the words that fill it, the answer and what proves it."""

    form: str
    answer: str
    words: dict[str, str]
    sprites: tuple[int, ...]
    evidence: tuple[tuple[float, float], ...]
    options: tuple[str, ...]
    seconds: float | None = None
    windows: tuple[tuple[float, float], ...] = ()
    test_points: tuple[tuple[float, str], ...] = ()


@dataclass
class Facts:
    """The certain facts of `episode` at `time_s`, each computed when first needed."""

    episode: Scene
    time_s: float
    views: list[list[Seen]] = field(init=False)

    def __post_init__(self) -> None:
        early = max(0.0, self.time_s - SETTLE_S)
        self.views = [self.episode.view(at) for at in (self.time_s, (early + self.time_s) / 2, early)]

    @property
    def now_span(self) -> tuple[tuple[float, float], ...]:
        """The evidence of a question about now."""
        return ((round(max(0.0, self.time_s - SETTLE_S), 3), self.time_s),)

    @cached_property
    def recent(self) -> list[Sprite]:
        """Sprites seen at any time of the last 1.2 seconds."""
        return list({seen.sprite.id: seen.sprite for view in self.views for seen in view}.values())

    @cached_property
    def steady(self) -> list[tuple[Seen, Seen, Seen]]:
        """Sprites that were whole, uncovered and unchanged all the time (now, midway, early)."""
        later = [{seen.sprite.id: seen for seen in view} for view in self.views]
        out = []
        for seen in self.views[0]:
            trio = tuple(view[seen.sprite.id] for view in later if seen.sprite.id in view)
            if len(trio) < 3:
                continue
            if all(s.whole and s.colour == seen.colour and s.text == seen.text for s in trio) and not any(
                _covered(s, view) for s, view in zip(trio, self.views, strict=True)
            ):
                out.append(trio)
        return out

    @property
    def is_settled(self) -> bool:
        """Whether every recent shape is steady."""
        return len(self.shapes) == len(self.recent_shapes)

    @cached_property
    def shapes(self) -> list[tuple[Seen, Seen, Seen]]:
        """The steady ones among the shapes."""
        return [trio for trio in self.steady if trio[0].sprite.is_shape]

    @cached_property
    def recent_shapes(self) -> list[Sprite]:
        """Shapes seen in the last 1.2 seconds."""
        return [sprite for sprite in self.recent if sprite.is_shape]

    def only(self, shape_id: int) -> Seen | None:
        """The steady lamp or sign, if there is exactly one."""
        found = [trio[0] for trio in self.steady if trio[0].sprite.shape == shape_id]
        return found[0] if len(found) == 1 and sum(s.shape == shape_id for s in self.recent) == 1 else None

    @cached_property
    def sign(self) -> Seen | None:
        """The steady sign."""
        return self.only(SIGN_ID)

    @cached_property
    def lamp(self) -> Seen | None:
        """The steady lamp."""
        return self.only(LAMP_ID)

    @cached_property
    def past(self) -> list[Sprite]:
        """Everything that began so far, by start."""
        return [sprite for sprite in self.episode.sprites if sprite.start_s <= self.time_s]

    @cached_property
    def past_shapes(self) -> list[Sprite]:
        """The shapes among `past`."""
        return [sprite for sprite in self.past if sprite.is_shape]

    def name_now(self, sprite: Sprite) -> str:
        """ "the star", when nothing else recent is one, else ""."""
        return f"the {sprite.name}" if sum(s.shape == sprite.shape for s in self.recent) == 1 else ""

    def name_ever(self, sprite: Sprite) -> str:
        """A name that fits one thing of all the past: "the star", or "the red star", or ""."""
        if self.time_s > LONG_S or self.episode.kind == "long":
            return self._coloured(sprite)
        if sum(s.shape == sprite.shape for s in self.past) == 1:
            return f"the {sprite.name}"
        return self._coloured(sprite)

    def _coloured(self, sprite: Sprite) -> str:
        if not sprite.is_shape or len(sprite.colours) > 1:
            return ""
        colour = step_at(sprite.colours, sprite.start_s)
        for other in self.past:
            if other.shape == sprite.shape and other.id != sprite.id and any(c == colour for _, c in other.colours):
                return ""
        return f"the {COLOUR_NAMES[colour - 1]} {sprite.name}"

    def name_memory(self, sprite: Sprite) -> str:
        """A name for a visible thing whose past is asked about."""
        if self.time_s > LONG_S or self.episode.kind == "long":
            return self.name_now(sprite)
        return f"the {sprite.name}" if sum(s.shape == sprite.shape for s in self.past) == 1 else ""


def _covered(seen: Seen, view: list[Seen]) -> bool:
    """Whether something in front hides much of it, or it hides much of something (then neither is asked about)."""
    for other in view:
        if other.sprite.id != seen.sprite.id:
            reach = 0.75 * (seen.radius + other.radius)
            if abs(other.x - seen.x) < reach and abs(other.y - seen.y) < reach:
                return True
    return False


def colour_spans(sprite: Sprite, until_s: float) -> list[tuple[int, float, float]]:
    """(colour id, from, to) of each colour a shape had before `until_s`."""
    steps = sprite.colours
    ends = [*(at for at, _ in steps[1:]), sprite.end_s]
    return [(c, a, min(b, until_s)) for (a, c), b in zip(steps, ends, strict=True) if a < until_s]
