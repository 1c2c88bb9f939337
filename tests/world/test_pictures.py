"""Pictures are pure functions of the script, readable, and true to it, patch by patch."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch

from onlooker.core.errors import InputError
from onlooker.world import change_frames, make_episode, patch_labels, rasterise, render_tables, to_torch
from onlooker.world.font import CELL, CHARACTERS, GLYPH_COLS, GLYPH_PITCH, GLYPH_ROWS, glyph_bitmaps
from onlooker.world.lexicon import COLOURS, RADII, SIGN_ID
from onlooker.world.script import SIGN_SLOT


@pytest.fixture(scope="module")
def scene():
    """Tables and raster of 40 episodes, four frames each."""
    episodes = [make_episode(seed, "test") for seed in range(40)]
    times = np.tile([3.0, 9.0, 15.0, 21.0], (40, 1))
    tables = render_tables(episodes, times)
    return tables, rasterise(tables)


def test_chunks_do_not_matter(scene):
    tables = {name: value[:3] for name, value in scene[0].items()}
    for chunk_frames in (1, 5, 100):
        again = rasterise(tables, chunk_frames=chunk_frames)
        assert torch.equal(again.images, scene[1].images[:3])
        assert torch.equal(again.owner, scene[1].owner[:3])


def test_a_time_rendered_again_is_the_same_frame():
    episode = make_episode(3, "train")
    streamed = {frame.time_s: frame.image for frame in itertools.islice(episode.frames(2.0), 30)}
    for at in (1.0, 7.5, 14.0):
        alone = rasterise(render_tables([episode], [[at]])).images[0, 0].numpy()
        assert np.array_equal(alone, streamed[at])


def test_owner_holds_the_colour_of_its_sprite(scene):
    tables, raster = scene
    checked = 0
    for e, f, slot in zip(*np.nonzero(tables["visible"]), strict=True):
        if tables["pattern"][e, f, slot] or tables["shape"][e, f, slot] > 8:
            continue
        pixels = raster.images[e, f][raster.owner[e, f] == slot].float()
        if len(pixels) > 60:
            shades = torch.tensor(list(COLOURS.values())) * float(tables["gain"][e, f])
            nearest = (pixels.median(0).values - shades.clamp(max=255)).norm(dim=1).argmin()
            assert int(nearest) == tables["colour_id"][e, f, slot] - 1
            checked += 1
    assert checked > 100


def test_sprites_are_big_enough_and_leave_most_patches_free(scene):
    tables, raster = scene
    plain = tables["visible"] & (tables["shape"] <= 8) & (tables["shape"] > 0)
    assert tables["size"][plain].min() * 2 * 128 >= 12
    touched = (raster.owner >= 0).unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).any(-1).any(-2).float().mean((-1, -2))
    assert touched.max() <= 0.30
    assert 0.08 <= touched.mean() <= 0.20


def decode(image, tables, e, f):
    """Read a sign by comparing cell brightness with every glyph."""
    cell = CELL / RADII[2] * tables["size"][e, f, SIGN_SLOT] * 128
    count = int((tables["glyphs"][e, f] > 0).sum())
    grey = image.astype(np.float32).mean(-1)
    left = tables["x"][e, f, SIGN_SLOT] * 128 - count * GLYPH_PITCH / 2 * cell
    top = tables["y"][e, f, SIGN_SLOT] * 128 - GLYPH_ROWS / 2 * cell
    fonts = glyph_bitmaps()[1:].reshape(len(CHARACTERS), -1).astype(np.float32)
    fonts -= fonts.mean(1, keepdims=True)
    fonts /= np.linalg.norm(fonts, axis=1, keepdims=True)
    text = ""
    for index in range(count):
        cols = left + (index * GLYPH_PITCH + 0.5 + np.arange(GLYPH_COLS) + 0.5) * cell
        rows = top + (np.arange(GLYPH_ROWS) + 0.5) * cell
        patch = grey[rows.astype(int)[:, None], cols.astype(int)[None]].reshape(-1)
        patch = patch - patch.mean()
        dark_ink = tables["colour"][e, f, SIGN_SLOT, 0] > 128
        text += CHARACTERS[int((fonts @ (-patch if dark_ink else patch)).argmax())]
    return text


def test_signs_can_be_read(scene):
    tables, raster = scene
    seen = right = 0
    for e, f in zip(*np.nonzero(tables["visible"][..., SIGN_SLOT]), strict=True):
        truth = "".join(CHARACTERS[code - 1] for code in tables["glyphs"][e, f] if code)
        if abs(tables["x"][e, f, SIGN_SLOT] - 0.5) < 0.34:
            seen += 1
            right += decode(raster.images[e, f].numpy(), tables, e, f) == truth
    assert seen > 30
    assert right >= 0.95 * seen
    cell = CELL / RADII[2] * tables["size"][..., SIGN_SLOT][tables["visible"][..., SIGN_SLOT]] * 128
    assert cell.min() >= 1.3
    assert cell.min() * GLYPH_ROWS >= 9


def test_patch_labels_equal_a_count_by_hand(scene):
    tables, raster = scene
    labels = patch_labels(tables, raster.owner, 8)
    rng = np.random.default_rng(0)
    for e, f in zip(rng.integers(0, 40, 30), rng.integers(0, 4, 30), strict=True):
        owner = raster.owner[e, f].numpy()
        for row, col in itertools.product(range(16), range(16)):
            tile = owner[row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]
            counts = [(tile == slot).sum() for slot in range(8)]
            slot = int(np.argmax(counts))
            shape = tables["shape"][e, f, slot] if counts[slot] >= 12.8 else 0
            colour = tables["colour_id"][e, f, slot] if counts[slot] >= 12.8 else 0
            assert (labels["shape"][e, f, row, col], labels["colour"][e, f, row, col]) == (shape, colour)


def test_glyph_labels_name_the_characters_of_the_sign(scene):
    tables, raster = scene
    labels = patch_labels(tables, raster.owner, 8)
    for e, f in zip(*np.nonzero(tables["visible"][..., SIGN_SLOT]), strict=True):
        codes = set(tables["glyphs"][e, f].tolist()) - {0}
        found = set(labels["glyph"][e, f].unique().tolist()) - {0}
        assert found <= codes
        if abs(tables["x"][e, f, SIGN_SLOT] - 0.5) < 0.34:
            assert found == codes
        on_sign = labels["shape"][e, f][labels["glyph"][e, f] > 0]
        assert (on_sign == SIGN_ID).float().mean() > 0.8


def test_sizes_show_the_same_scene(scene):
    tables = {name: value[:2] for name, value in scene[0].items()}
    large = rasterise({**tables, "noise_sigma": tables["noise_sigma"] * 0}, 256, 256).images.float()
    small = rasterise({**tables, "noise_sigma": tables["noise_sigma"] * 0}, 128, 128).images.float()
    halved = torch.nn.functional.avg_pool2d(large.flatten(0, 1).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert (halved - small.flatten(0, 1)).abs().mean() < 6
    wide = rasterise(to_torch(tables), 96, 160)
    assert wide.images.shape == (2, 4, 96, 160, 3)


def test_noise_has_the_stated_strength():
    episode = make_episode(0, "test", kind="frozen_noise")
    images = rasterise(render_tables([episode], [np.arange(8) / 100])).images[0].float()
    sigma = episode.shots[0].noise_sigma
    assert images.std(0).median() == pytest.approx(sigma, rel=0.15)


def test_odd_patches_are_refused(scene):
    with pytest.raises(InputError, match="patches"):
        patch_labels(scene[0], scene[1].owner, 7)


def test_an_episode_of_hours_is_drawn_in_bounded_memory():
    episode = make_episode(1, "test", 6 * 3600.0, "long")
    tracemalloc.start()
    for frame in itertools.islice(episode.frames(1.0, (64, 64), chunk_frames=8), 200):
        assert frame.image.shape == (64, 64, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_change_frames_equal_the_script():
    episodes = [make_episode(seed, "validation", 30.0) for seed in range(4)]
    times = np.tile(np.arange(30.0), (len(episodes), 1))
    tables = render_tables(episodes, times)
    found = {name: value.numpy() for name, value in change_frames(tables, torch.device("cpu")).items()}
    changes = 0
    for row, episode in enumerate(episodes):
        sprites = {sprite.id: sprite for sprite in episode.sprites_between(0, 30)}
        for frame, slot in np.argwhere(tables["visible"][row]):
            sprite = sprites[tables["sprite"][row, frame, slot]]
            seen = np.flatnonzero(tables["visible"][row, :, slot] & (tables["sprite"][row, :, slot] == sprite.id))
            assert found["born"][row, frame, slot] == seen[0]
            steps = [at for at, _ in sprite.texts or sprite.colours if at <= frame]
            since = seen[seen >= max(steps, default=0)][0]
            assert found["since"][row, frame, slot] == since
            changes += since > seen[0]
    assert changes > 20
