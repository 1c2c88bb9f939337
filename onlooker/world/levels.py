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
        Level(
            name="L1", duration_s=24.0, sizes=(0, 3, 4), arrival_s=(1.4, 2.8), life_s=(2.6, 10.0), most=5,
            palette=(6, 6), alike_share=0.25, crossing_share=0.1, moving_share=0.6, speed=(0.02, 0.08),
            contrast=(10, 35), colourful=(0.0, 0.5), pan=(0.0, 0.04), sway=0.02, zoom=0.04, roll=0.0,
            cut_share=0.2, noise_sigma=(0.0, 5.0), damage_share=0.0, damage=0.0, sign_share=0.6,
        ),
        Level(
            name="L2", duration_s=32.0, sizes=(4, 5, 6), arrival_s=(1.3, 2.4), life_s=(2.3, 9.0), most=6,
            palette=(6, 5), alike_share=0.35, crossing_share=0.15, moving_share=0.65, speed=(0.02, 0.09),
            contrast=(55, 100), colourful=(0.2, 0.9), pan=(0.0, 0.15), sway=0.03, zoom=0.05, roll=0.0,
            cut_share=0.3, noise_sigma=(20.0, 38.0), damage_share=0.5, damage=0.7, sign_share=0.6,
        ),
        Level(
            name="L3", duration_s=48.0, sizes=(5, 6, 7), arrival_s=(1.3, 2.4), life_s=(2.3, 8.5), most=6,
            palette=(6, 5), alike_share=0.35, crossing_share=0.25, moving_share=0.7, speed=(0.03, 0.11),
            contrast=(59, 102), colourful=(0.3, 1.0), pan=(0.06, 0.3), sway=0.05, zoom=0.08, roll=0.1,
            cut_share=0.4, noise_sigma=(18.0, 34.0), damage_share=0.58, damage=0.78, sign_share=0.6,
        ),
        Level(
            name="L4", duration_s=120.0, sizes=(6, 7, 8), arrival_s=(1.3, 2.4), life_s=(2.2, 8.0), most=6,
            palette=(6, 5), alike_share=0.4, crossing_share=0.3, moving_share=0.75, speed=(0.03, 0.12),
            contrast=(60, 104), colourful=(0.4, 1.0), pan=(0.1, 0.4), sway=0.06, zoom=0.1, roll=0.15, cut_share=0.5,
            noise_sigma=(18.0, 36.0), damage_share=0.6, damage=0.8, sign_share=0.6,
        ),
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
