"""On a GPU, in bfloat16: towers agree with the stock ones, and packed steps with plain ones on frames of real sizes."""

import dataclasses

import pytest
import torch
from stock_models import flat_patches, load_stock
from tiny import make_qwen_folder

from onlooker.encode._packed import PackedTower, References, fastest_ways, packed_layers
from onlooker.encode.full import Full
from onlooker.encode.stc_published import STCPublished
from onlooker.kernels.rows import Stored, ValueRows, vision_kernels
from onlooker.kernels.selection import Chosen
from onlooker.kernels.window_attention import WindowAttention, WindowTable
from onlooker.models import SHAPES, load
from onlooker.models._qwen_random import random_vision
from onlooker.models._shapes import QwenShape

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = torch.device("cuda")
NAMES = {"qwen2_5_vl": "qwen2.5-vl-7b", "qwen3_vl": "qwen3-vl-8b"}
EACH = pytest.mark.parametrize("family", NAMES)


def relative(a, b):
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def distance(a, b):
    return float((a.float() - b.float()).norm() / b.float().norm())


@EACH
@torch.no_grad()
def test_half_precision_tower_on_the_device(family, tmp_path):
    folder = make_qwen_folder(tmp_path, family)
    model, stock = load(folder, dtype="bfloat16", device="cuda"), load_stock(folder).to("cuda", torch.bfloat16)
    pixels = torch.randn(16, 3, 84, 140, device="cuda")
    flat, grids = flat_patches(pixels)
    wanted = stock.model.visual(flat.bfloat16(), grid_thw=grids.cuda()).pooler_output
    tower, hidden = model.tower((3, 84, 140)), model.embed_patches(pixels)
    dense = Full().encode(tower, hidden, [Full().new_state()] * 16)
    features, _, _ = model.project(dense, (3, 84, 140))
    assert relative(features.flatten(0, 1), wanted) < 0.03
    method = STCPublished(recompute_ratio=1.0)
    states = [method.new_state() for _ in range(16)]
    method.encode(tower, hidden.flip(0), states)
    assert relative(method.encode(tower, hidden, states).hidden, dense.hidden) < 0.03


@pytest.mark.parametrize("grid", [(32, 32), (50, 90), (6, 2)])  # windows of one size, of three, and one small one
@torch.no_grad()
def test_windows_at_real_widths(grid):
    """Heads of 80 and windows of 64, among memory that is not a number wherever nobody may read."""
    heads, dim, streams, tokens = 16, 1280, 3, grid[0] * grid[1]
    row, col = (torch.arange(length, device=DEVICE) // 8 for length in grid)
    across = int(col.max()) + 1
    # In blocks of two by two, as a tower's tokens are.
    number = (row[:, None] * across + col).unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).transpose(1, 2).flatten()
    within = WindowAttention(WindowTable.of(number), heads, 80**-0.5)

    def poisoned(rows, width):
        """Random rows of `width`, with others before, behind and beside them."""
        room = torch.full((rows + 128, width + 64), float("nan"), dtype=torch.bfloat16, device=DEVICE)
        inside = room[64:-64, :width]
        inside.copy_(torch.randn(rows, width, device=DEVICE))
        return inside

    queries, keys, values = (poisoned(streams * tokens, dim).unflatten(0, (streams, tokens)) for _ in range(3))
    got = within.whole(queries, keys, values, vision_kernels())
    assert distance(got, within.whole(queries.float(), keys.float(), values.float(), None)) < 0.01

    chosen = Chosen(0, streams, tokens, max(4, tokens // 16 * 4), DEVICE, 4)
    chosen.choose(torch.rand(streams, tokens, device=DEVICE), None)
    asking = poisoned(streams * chosen.count, dim).unflatten(0, (streams, chosen.count))
    fresh = poisoned(streams * chosen.count, dim)
    rooms = [torch.full((3, tokens, dim), float("nan"), dtype=torch.bfloat16, device=DEVICE) for _ in range(streams)]
    for room in rooms:
        room[1].copy_(torch.randn(tokens, dim, device=DEVICE))
    addresses = torch.tensor([room.data_ptr() for room in rooms], device=DEVICE)
    mixed = ValueRows(fresh, chosen.rows, Stored(addresses=addresses), 1)
    got = within.some(asking, keys, mixed, chosen, vision_kernels())
    stack = Stored(torch.stack(rooms)[:, 1:2].float())
    wanted = within.some(asking.float(), keys.float(), ValueRows(fresh.float(), chosen.rows, stack, 0), chosen, None)
    assert distance(got, wanted) < 0.01


@EACH
@pytest.mark.parametrize("size", [(448, 448), (720, 1280)])
@torch.no_grad()
def test_packed_steps_at_real_sizes(family, size):
    """Sixteen streams, of which some refresh, at a real tower's widths: of the first nine layers, one tapped at least
    and in Qwen2.5-VL one whole, results are those of the plain method."""
    shape = SHAPES[NAMES[family]]
    assert isinstance(shape, QwenShape)
    vision = random_vision(dataclasses.replace(shape, vision_layers=9), torch.bfloat16, DEVICE)
    side, streams, whole = vision.factor, 16, 3
    rows, cols = (length // side * side for length in size)
    tower, method = vision.tower(*vision.patches((rows, cols))), STCPublished(interval=None)
    before, drift, new = (torch.randn(streams, 3, rows, cols, device=DEVICE) for _ in range(3))
    moved = torch.rand(streams, 1, rows // side, cols // side, device=DEVICE) < 0.2  # fewer than are computed
    moved = moved.repeat_interleave(side, 2).repeat_interleave(side, 3)
    frames = [vision.embed_patches(each) for each in (before, torch.where(moved, new, before + 0.02 * drift))]

    taps = tuple(sorted(tower.tap_layers))
    packed = PackedTower(packed_layers(tower), method.plan(tower), fastest_ways(frames[0]), taps)
    kinds = [
        [torch.full_like(frames[0][:1].expand(count, -1, -1), float("nan")) for _ in before] for count in packed.kept
    ]
    tables = [torch.tensor([tensor.data_ptr() for tensor in tensors], device=DEVICE) for tensors in kinds]
    old = References(*(Stored(addresses=table) for table in tables))
    packed.run(frames[0], packed.chosen(frames[0], streams), old)
    assert all(bool(tensor.isfinite().all()) for tensors in kinds for tensor in tensors), "not all was remembered"
    output, times, outputs = packed.run(frames[1], packed.chosen(frames[1], whole), old)

    states = [method.new_state() for _ in range(streams)]
    method.encode(tower, frames[0], states)
    states[:whole] = [method.new_state() for _ in range(whole)]
    wanted = [method.encode(tower, frames[1][part], states[part]) for part in (slice(whole), slice(whole, streams))]
    assert float(times.sum(1).min()) == float(times.sum(1).max()) == 9 * method.recomputed_tokens(tower)
    for stream in range(streams):
        one = wanted[stream >= whole]
        at = stream if stream < whole else stream - whole
        assert distance(output[stream], one.hidden[at]) < (0.02 if stream < whole else 0.05)
        for number, tap in zip(taps, outputs, strict=True):
            assert distance(tap[stream], one.taps[number][at]) < (0.02 if stream < whole else 0.05)
