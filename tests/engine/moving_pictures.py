"""Random pictures that change from second to second."""

import numpy as np

from onlooker.core.frame import Frame


def make_frames(count: int, seed: int = 0, size: int = 56) -> list[Frame]:
    """A random picture that changes a little from second to second, and now and then altogether."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (size, size, 3))
    frames = []
    for number in range(count):
        if number % 7 == 6:
            picture = rng.integers(0, 256, (size, size, 3))
        row, col = rng.integers(0, size - 14, 2)
        picture = picture.copy()
        picture[row : row + 14, col : col + 14] = rng.integers(0, 256, 3)
        frames.append(Frame(picture.astype(np.uint8), float(number)))
    return frames
