"""Levels of difficulty above L0: small things on natural grounds, look-alikes, a moving camera, damage, long waits."""

from dataclasses import dataclass

from onlooker.core.errors import InputError


@dataclass(frozen=True)
class Level:
    """How hard the episodes of a level are. Shares are probabilities, pairs are (least, most)."""

    name: str
    duration_s: float
    """Length of the clips that the evaluation asks about, in seconds."""
    sizes: tuple[int, ...]
    """Sizes of things, indices into `lexicon.RADII`, equally likely."""
    arrival_s: tuple[float, float]
    """Seconds from one arrival to the next; 1.3 at least."""
    life_s: tuple[float, float]
    """How long a thing stays; short lives are more likely than long ones."""
    most: int
    """Most things visible at once, six at most."""
    palette: tuple[int, int]
    """Shapes and colours that an episode draws from: few of them make many that share a colour or a shape."""
    alike_share: float
    """Share of arrivals that look exactly like a thing on screen."""
    crossing_share: float
    """Share of things that may pass in front of others."""
    moving_share: float
    """Share of things that move."""
    speed: tuple[float, float]
    """Speed of moving things, in frame heights a second."""
    contrast: tuple[float, float]
    """Contrast of the texture, in grey levels."""
    colourful: tuple[float, float]
    """Colourfulness of the texture, as a share of its contrast."""
    pan: tuple[float, float]
    """Speed of the ground as the camera pans, in frame heights a second (a patch is 1/16)."""
    sway: float
    """Largest sway of the camera, in frame shares."""
    zoom: float
    """Largest change of scale, as a share."""
    roll: float
    """Largest turn of the camera, in radians."""
    cut_share: float
    """Share of episodes with a hard cut of the ground."""
    noise_sigma: tuple[float, float]
    """Sensor noise, in grey levels."""
    damage_share: float
    """Share of shots that are damaged."""
    damage: float
    """Largest severity of blur, blocks and noise, 0 to 1."""
    sign_share: float
    """Share of episodes with a sign."""

    def __post_init__(self) -> None:
        if self.arrival_s[0] < 1.3 or self.life_s[0] < 2.2 or not 1 <= self.most <= 6:
            raise InputError(
                "events must show at one frame a second, and at most six things at once", given=self.name,
                do="arrivals 1.3 s apart, lives of 2.2 s or more, most=6",
            )  # fmt: skip


LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level("L1", 24.0, (0, 3, 4), (1.4, 2.8), (2.6, 10.0), 5, (6, 6), 0.25, 0.1, 0.6, (0.02, 0.08), (10, 35), (0.0, 0.5),
              (0.0, 0.04), 0.02, 0.04, 0.0, 0.2, (0.0, 5.0), 0.0, 0.0, 0.6),
        Level("L2", 32.0, (4, 5, 6), (1.3, 2.4), (2.3, 9.0), 6, (6, 5), 0.35, 0.15, 0.65, (0.02, 0.09), (25, 60), (0.2, 0.9),
              (0.0, 0.15), 0.03, 0.05, 0.0, 0.3, (0.0, 8.0), 0.15, 0.35, 0.6),
        Level("L3", 48.0, (5, 6, 7), (1.3, 2.4), (2.3, 8.5), 6, (6, 5), 0.35, 0.25, 0.7, (0.03, 0.11), (35, 70), (0.3, 1.0),
              (0.06, 0.30), 0.05, 0.08, 0.10, 0.4, (2.0, 10.0), 0.3, 0.5, 0.6),
        Level("L4", 120.0, (6, 7, 8), (1.3, 2.4), (2.2, 8.0), 6, (6, 5), 0.4, 0.3, 0.75, (0.03, 0.12), (40, 80), (0.4, 1.0),
              (0.10, 0.40), 0.06, 0.10, 0.15, 0.5, (4.0, 14.0), 0.45, 0.7, 0.6),
    )
}  # fmt: skip
"""The levels above L0 by name."""
LEVEL_NAMES = ("L0", *LEVELS)
"""All levels, easiest first."""


def level_named(name: str) -> Level:
    """The level of this name. Raises `InputError` for another name (L0 has `WorldSettings` instead)."""
    if name not in LEVELS:
        raise InputError("there is no such level", given=repr(name), do=f"one of: {', '.join(LEVEL_NAMES)}")
    return LEVELS[name]
