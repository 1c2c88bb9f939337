"""On a GPU, in bfloat16: towers agree with the stock ones, and recomputing everything equals dense."""

import pytest
import torch
from stock_models import flat_patches, load_stock
from tiny import make_qwen_folder

from onlooker.encode.full import Full
from onlooker.encode.stc_cacher import STCCacher
from onlooker.models import load

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def relative(a, b):
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
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
    method = STCCacher(recompute_ratio=1.0)
    states = [method.new_state() for _ in range(16)]
    method.encode(tower, hidden.flip(0), states)
    assert relative(method.encode(tower, hidden, states).hidden, dense.hidden) < 0.03
