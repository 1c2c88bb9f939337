"""What a video's encoder said of a frame: its kind, its bytes, and how far each part of the picture moved."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class CodecRecord:
    """The encoder's own account of the way from the last frame that was taken to this one.

    Of a predictive codec (H.264, MPEG-4, MPEG-2) it comes with the stream, for nothing. It is a guess of the encoder's,
    made to save bits: on flat ground vectors may point anywhere.
    """

    frame_type: str
    """"I", "P" or "B"; "?" where the decoder does not say."""
    num_pictures: int
    """Pictures decoded since the last frame that was taken, this one included."""
    num_intra: int
    """How many of them are I-pictures: encoded without looking back."""
    num_bytes: int
    """Bytes of all their packets."""
    motion: np.ndarray | None
    """Float32 [grid_rows, grid_cols, 2] over blocks of 16 x 16 stored pixels, the picture upright: where the block was
    in the last frame that was taken, minus where it is, as (rows, cols) in fractions of the picture's height and width.
    None where the codec exports no vectors, and for the first frame. What is not known is 0."""
    known: np.ndarray | None
    """Float32 [grid_rows, grid_cols], 0 to 1: the share of the way for which there was a vector."""

    def after(self, earlier: "CodecRecord") -> "CodecRecord":
        """The account of the way over a frame that was dropped, of which `earlier` tells: kinds and bytes of both, and
        the motion of both, block by block, where both are known."""
        motion = known = None
        mine, theirs = (one.motion if one.known is not None else None for one in (self, earlier))
        if mine is not None and theirs is not None and mine.shape == theirs.shape:
            assert self.known is not None and earlier.known is not None
            rows, cols = mine.shape[:2]
            row = np.arange(rows)[:, None] + np.rint(mine[..., 0] * rows).astype(int)
            col = np.arange(cols)[None] + np.rint(mine[..., 1] * cols).astype(int)
            there = np.clip(row, 0, rows - 1), np.clip(col, 0, cols - 1)
            motion, known = mine + theirs[there], self.known * earlier.known[there]
        return CodecRecord(
            self.frame_type,
            self.num_pictures + earlier.num_pictures,
            self.num_intra + earlier.num_intra,
            self.num_bytes + earlier.num_bytes,
            motion,
            known,
        )

    def on_grid(self, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Motion on a grid of patches: mean [rows, cols, 2], spread [rows, cols] and known share [rows, cols].

        The spread is the mean distance from the mean, in the units of `motion`: small where a patch moved as one.
        None where there is no motion.
        """
        if self.motion is None or self.known is None:
            return None
        weight_rows, weight_cols = _shares(self.motion.shape[0], rows), _shares(self.motion.shape[1], cols)

        def average(values: np.ndarray) -> np.ndarray:
            return np.einsum("pr,rc...,qc->pq...", weight_rows, values, weight_cols).astype(np.float32)

        mean = average(self.motion)
        second = average((self.motion**2).sum(-1))
        spread = np.sqrt(np.maximum(second - (mean**2).sum(-1), 0))
        return mean, spread, average(self.known)


def _shares(have: int, want: int) -> np.ndarray:
    """[want, have]: the share that each of `have` equal parts of a line has in each of `want`; rows sum to 1."""
    edges, cuts = np.arange(have + 1) / have, np.arange(want + 1) / want
    overlap = np.minimum(edges[None, 1:], cuts[1:, None]) - np.maximum(edges[None, :-1], cuts[:-1, None])
    return np.maximum(overlap, 0) * want
