"""Ninety-six faces made of three attributes, so that look-alikes differ in one; a third of them is never trained on."""

from functools import cache

import numpy as np

from onlooker.world.lexicon import LAMP_ID, PATTERNS
from onlooker.world.scene import Split

EYES, MOUTHS, TOPS = 4, 4, 6
NUM_FACES = EYES * MOUTHS * TOPS
FACE_OUTLINE = 1
"""Shape id whose outline a face has."""
FACE_TONES = (LAMP_ID + 1) * len(PATTERNS)
"""Where the tones of faces begin, behind those of all shapes and patterns."""


def attributes(face: int) -> tuple[int, int, int]:
    """(eyes, mouth, top) of a face 0 to 95."""
    return face % EYES, face // EYES % MOUTHS, face // (EYES * MOUTHS)


def is_new(face: int) -> bool:
    """Whether no training clip shows this face: 32 of the 96, in which every attribute appears."""
    return sum(attributes(face)) % 3 == 2


def faces_of(split: Split, new: bool) -> list[int]:
    """The faces that a clip may show: new ones only outside of training, and never both kinds."""
    assert not (new and split == "train"), "new faces are not trained on"
    return [face for face in range(NUM_FACES) if is_new(face) == new]


def look_alikes(face: int) -> list[int]:
    """The faces of the same kind (new or not) that differ from this one in one attribute."""
    mine = attributes(face)
    return [
        other
        for other in range(NUM_FACES)
        if is_new(other) == is_new(face) and sum(a != b for a, b in zip(mine, attributes(other), strict=True)) == 1
    ]


@cache
def face_tones(fine: int, reach: float) -> np.ndarray:
    """float32 `[96, fine, fine]`: 1 where a face has its colour, 0 where eyes, mouth and hair are, over `reach` radii
    from the middle."""
    axis = ((np.arange(fine) + 0.5) / fine * 2 - 1) * reach
    y, x = np.meshgrid(axis, axis, indexing="ij")
    side = abs(x) - 0.38
    eyes = (
        np.hypot(side, y + 0.15) < 0.19,
        (abs(side) < 0.25) & (abs(y + 0.15) < 0.09),
        abs(np.hypot(side, y + 0.15) - 0.2) < 0.08,
        (x > 0) & (np.hypot(side, y + 0.15) < 0.22),
    )
    mouths = (
        (abs(x) < 0.45) & (abs(y - 0.48) < 0.09),
        (abs(np.hypot(x, y - 0.2) - 0.42) < 0.09) & (y > 0.36),
        (abs(np.hypot(x, y - 0.86) - 0.42) < 0.09) & (y < 0.7),
        np.hypot(x, y - 0.5) < 0.24,
    )
    tops = (
        np.zeros_like(x, dtype=bool), y < -0.5, (abs(x) < 0.17) & (y < -0.32), (x < -0.1) & (y < -0.45),
        (x > 0.1) & (y < -0.45), abs(x) > 0.72,
    )  # fmt: skip
    dark = [eyes[e] | mouths[m] | tops[t] for e, m, t in map(attributes, range(NUM_FACES))]
    return (~np.stack(dark)).astype(np.float32)
