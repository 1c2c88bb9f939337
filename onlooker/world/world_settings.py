"""How hard the world is: one frozen dataclass, every field with its meaning."""

from dataclasses import dataclass

from onlooker.core.errors import InputError


@dataclass(frozen=True)
class WorldSettings:
    """Difficulty of an episode. Shares are probabilities per episode, pairs are (least, most)."""

    num_shapes: tuple[int, int] = (6, 8)
    """Shapes that come and go in each 24 seconds."""
    max_visible: int = 4
    """Most things visible at once."""
    crowd_share: float = 0.15
    """Share of episodes in which one more thing may be visible."""
    life_s: tuple[float, float] = (4.0, 14.0)
    """How long a shape stays, in seconds."""
    gap_s: float = 1.3
    """Least time between two arrivals, two departures, or two changes of one thing, in seconds."""
    sign_share: float = 0.8
    """Share of episodes with a sign."""
    number_share: float = 0.45
    """Share of signs that show numbers instead of words."""
    lamp_share: float = 0.4
    """Share of episodes with a lamp that cycles through colours."""
    twins_share: float = 0.45
    """Share of episodes in which several shapes of one kind appear."""
    sizes: tuple[float, float, float] = (0.35, 0.4, 0.25)
    """Weights of small, medium and large shapes."""
    patterned_share: float = 0.5
    """Share of medium and large shapes that are striped, dotted or hollow."""
    moving_share: float = 0.65
    """Share of shapes that move."""
    occlusion_share: float = 0.25
    """Share of crossing shapes that may briefly pass in front of others."""
    cut_share: float = 0.3
    """Share of mixed episodes with one or two hard cuts."""
    camera_share: float = 0.5
    """Share of shots in which the camera pans, zooms or shakes."""
    noise_sigma: tuple[float, float] = (0.0, 7.0)
    """Sensor noise, in grey levels."""
    contrast: tuple[float, float] = (0.2, 0.5)
    """Contrast of the background, as a share of full range."""
    drift: tuple[float, float] = (0.0, 0.05)
    """Speed of the background, in frame heights per second."""
    light_swing: float = 0.12
    """Largest slow change of brightness, as a share."""
    needle_depth: float | None = None
    """Where the first needle of a long episode lies, as a share of its length; None means anywhere."""
    needle_until: float = 1.0
    """Share of a long episode, from its start, that all its needles lie in."""
    needles_per_hour: float = 8.0
    """Things that appear exactly once in a long episode (three at least)."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_visible <= 5:
            raise InputError("max_visible must lie in 1..5", given=str(self.max_visible), do="use 4")
        if self.gap_s < 1.2:
            raise InputError(
                "gap_s must be 1.2 or more", given=str(self.gap_s), do="events must show at one frame a second"
            )
        if self.needle_depth is not None and not 0 <= self.needle_depth <= 1:
            raise InputError("needle_depth must lie in 0..1", given=str(self.needle_depth), do="use 0.5 for the middle")
        if not 0 < self.needle_until <= 1:
            raise InputError("needle_until must lie in 0..1", given=str(self.needle_until), do="use 1 for anywhere")
