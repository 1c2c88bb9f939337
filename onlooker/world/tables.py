"""Evaluate scripts at frame times: everything a renderer needs, as small numpy arrays (no torch here)."""

from collections.abc import Sequence

import numpy as np

from onlooker.core.errors import InputError
from onlooker.world.font import MAX_GLYPHS, glyph_codes
from onlooker.world.lexicon import COLOURS, RADII, SIGN_ID
from onlooker.world.scene import Scene
from onlooker.world.scenery import NUM_WAVES, TEXTURE_NUMBERS
from onlooker.world.script import SIGN_SLOT, SLOTS, Shot, Sprite

PLATES = np.array([(245, 245, 240), (16, 16, 18), (24, 30, 78), (246, 236, 200)], dtype=np.float32)
"""sRGB of sign plates; ink is black on light plates and white on dark ones."""
_RGB = np.array([(0, 0, 0), *COLOURS.values()], dtype=np.float32)
_RADII = np.array(RADII, dtype=np.float32)


def render_tables(episodes: Sequence[Scene], times_s: Sequence[Sequence[float]] | np.ndarray) -> dict[str, np.ndarray]:
    """The state of every episode at its frame times `times_s` `[episodes, frames]`, in seconds since its start.

    Per sprite slot, `[episodes, frames, slots]` (8 slots, a later one is in front; slot 7 is the sign):
    `visible` bool, `x`, `y` (centre, frame shares), `size` (half extent, share of the shorter side), `angle`
    (radians), all float32; `shape` (0 none, 1..8, 9 lamp, 10 sign), `colour_id` (0 none, 1..8), `pattern`, `sprite`
    (id in the episode, -1 none), all int32; `colour` float32 `[..., slots, 3]`, 0..255.
    Per frame: `glyphs` int32 `[episodes, frames, 4]` (0 none), `gain`, `noise_sigma` float32, `noise_seed` int32,
    `texture` float32 `[..., 16]` (its first number 0: none) and `damage` float32 `[..., 3]` (see `Shot`),
    `background` int32, `waves` float32 `[episodes, frames, 15]`, `mix` float32 `[episodes, frames, 14]`, `camera`
    float32 `[episodes, frames, 3]` (x, y, zoom; already applied to sprites and waves), `time_s` float32.
    Raises `InputError` when times are not `[episodes, frames]`.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if times.ndim != 2 or len(times) != len(episodes) or not np.isfinite(times).all():
        given = f"{list(times.shape)} for {len(episodes)} episodes"
        raise InputError("frame times must be [episodes, frames]", given=given, do="pass one row of times per episode")
    num_episodes, num_frames = times.shape
    out = _blank(num_episodes, num_frames)
    for index, episode in enumerate(episodes):
        row = {name: array[index] for name, array in out.items()}
        _scene(episode, times[index], row)
        if num_frames:
            for sprite in episode.sprites_between(times[index].min(), times[index].max()):
                _sprite(episode, sprite, times[index], row)
    x, y, size = out["x"], out["y"], out["size"]
    out["visible"] &= (x > -size) & (x < 1 + size) & (y > -size) & (y < 1 + size)
    return out


def _blank(num_episodes: int, num_frames: int) -> dict[str, np.ndarray]:
    frame, slot = (num_episodes, num_frames), (num_episodes, num_frames, SLOTS)
    floats, ints = np.float32, np.int32
    return {
        "visible": np.zeros(slot, bool), "x": np.zeros(slot, floats), "y": np.zeros(slot, floats),
        "size": np.full(slot, 0.05, floats), "angle": np.zeros(slot, floats), "shape": np.zeros(slot, ints),
        "colour_id": np.zeros(slot, ints), "pattern": np.zeros(slot, ints), "sprite": np.full(slot, -1, ints),
        "colour": np.zeros((*slot, 3), floats), "glyphs": np.zeros((*frame, MAX_GLYPHS), ints),
        "gain": np.ones(frame, floats), "noise_sigma": np.zeros(frame, floats), "noise_seed": np.zeros(frame, ints),
        "background": np.zeros(frame, ints), "waves": np.zeros((*frame, 3 * NUM_WAVES), floats),
        "mix": np.zeros((*frame, 14), floats), "camera": np.zeros((*frame, 3), floats),
        "texture": np.zeros((*frame, TEXTURE_NUMBERS), floats), "damage": np.zeros((*frame, 3), floats),
        "time_s": np.zeros(frame, floats),
    }  # fmt: skip


def _scene(episode: Scene, times: np.ndarray, row: dict[str, np.ndarray]) -> None:
    """Fill the per-frame columns of one episode, shot by shot."""
    row["time_s"][:] = times
    which = np.searchsorted(np.array(episode._cuts), times, side="right") - 1
    for number in np.unique(np.maximum(which, 0)):
        shot = episode.shots[number]
        at = np.flatnonzero(np.maximum(which, 0) == number)
        t = times[at]
        pan_x, pan_y, zoom = shot.camera(t)
        row["camera"][at] = np.stack((pan_x, pan_y, np.broadcast_to(zoom, t.shape)), axis=-1)
        row["gain"][at], row["noise_sigma"][at] = shot.light(t), shot.noise_sigma
        row["background"][at], row["mix"][at] = shot.background, shot.mix
        row["damage"][at] = shot.damage
        if shot.texture:
            row["texture"][at] = _texture(shot, t, pan_x, pan_y, zoom)
            continue
        waves = np.array(shot.waves).reshape(NUM_WAVES, 3)
        # A wave k.p + phase seen by a camera at c with zoom z, on a ground that drifted by d, is (k/z).p' + phase'.
        k = waves[None, :, :2] / np.asarray(zoom * np.ones_like(t))[:, None, None]
        move_x, move_y = pan_x / zoom + shot.drift[0] * t, pan_y / zoom + shot.drift[1] * t
        phase = waves[None, :, 2] - waves[None, :, 0] * move_x[:, None] - waves[None, :, 1] * move_y[:, None]
        row["waves"][at] = np.concatenate((k, (phase % (2 * np.pi))[..., None]), axis=-1).reshape(len(t), -1)
    milliseconds = np.round(times * 1000).astype(np.int64)
    row["noise_seed"][:] = ((milliseconds * 2654435761 + episode.noise_base) & 0x3FFFFFFF).astype(np.int32)


def _texture(shot: Shot, t: np.ndarray, pan_x, pan_y, zoom) -> np.ndarray:
    """The numbers of a texture with the camera in front: `shot.texture`, then a matrix and an offset per frame.

    A place p of the picture (from its middle) shows the texture at (R^-1 (p - pan)) / zoom + where the ground has
    drifted to.
    """
    turn = np.broadcast_to(shot.roll_at(t), t.shape)
    cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
    drift_x, drift_y = shot.drift[0] * t, shot.drift[1] * t
    off_x, off_y = -cos * pan_x - sin * pan_y - drift_x, sin * pan_x - cos * pan_y - drift_y
    fixed = np.broadcast_to(np.array(shot.texture), (len(t), len(shot.texture)))
    return np.concatenate((fixed, np.stack((cos, sin, off_x, off_y), axis=-1)), axis=-1)


def _sprite(episode: Scene, sprite: Sprite, times: np.ndarray, row: dict[str, np.ndarray]) -> None:
    """Write one sprite into its slot for the frames in which it is switched on."""
    on = (times >= sprite.start_s) & (times < sprite.end_s)
    for begin, end in sprite.hidden:
        on &= (times < begin) | (times >= end)
    at = np.flatnonzero(on)
    if not len(at):
        return
    t, slot = times[at], sprite.slot
    x, y = sprite.motion.at(t - sprite.start_s)
    pan_x, pan_y, zoom = row["camera"][at].T
    row["visible"][at, slot] = True
    if any(shot.roll for shot in episode.shots):
        xs, ys = np.broadcast_to(x, t.shape), np.broadcast_to(y, t.shape)
        which = np.maximum(np.searchsorted(np.array(episode._cuts), t, side="right") - 1, 0)
        for number in np.unique(which):
            some = which == number
            moved = episode.shots[number].place(xs[some], ys[some], t[some])
            row["x"][at[some], slot], row["y"][at[some], slot] = moved
    else:
        row["x"][at, slot] = (x - 0.5) * zoom + 0.5 + pan_x
        row["y"][at, slot] = (y - 0.5) * zoom + 0.5 + pan_y
    row["size"][at, slot] = _RADII[sprite.size] * zoom
    row["angle"][at, slot] = sprite.spin * np.sin((t - sprite.start_s) * 0.9)
    row["shape"][at, slot], row["sprite"][at, slot] = sprite.shape, sprite.id
    if sprite.shape == SIGN_ID:
        codes = np.zeros((len(sprite.texts), MAX_GLYPHS), np.int32)
        for index, (_, text) in enumerate(sprite.texts):
            codes[index, : len(text)] = glyph_codes(text)
        row["glyphs"][at] = codes[_step(sprite.texts, t)]
        row["colour"][at, SIGN_SLOT] = PLATES[sprite.pattern]
        return
    row["pattern"][at, slot] = sprite.pattern
    colours = np.array([value for _, value in sprite.colours], np.int32)[_step(sprite.colours, t)]
    row["colour_id"][at, slot], row["colour"][at, slot] = colours, _RGB[colours]


def _step(steps: Sequence[tuple[float, object]], times: np.ndarray) -> np.ndarray:
    """Index of the step that holds at each time."""
    if len(steps) == 1:
        return np.zeros(len(times), np.intp)
    return np.maximum(np.searchsorted(np.array([start for start, _ in steps]), times, side="right") - 1, 0)
