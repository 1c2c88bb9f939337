"""The page of FLOP counts is what its command prints, and its counts are those of the stock networks."""

from pathlib import Path

import pytest
import torch
from tiny import make_qwen_folder

from benchmarks.flop_table import page
from onlooker.models import SHAPES, load, shape_of
from onlooker.models._qwen_random import empty_network
from onlooker.models._shapes import QwenShape

PAGE = Path(__file__).parents[2] / "docs" / "flops.md"


def test_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m benchmarks.flop_table > docs/flops.md"


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if isinstance(shape, QwenShape)])
def test_parameters_are_those_of_the_stock_network(name):
    shape = SHAPES[name]
    network = empty_network(shape, torch.bfloat16)
    assert shape.parameters == pytest.approx(network.num_parameters(), rel=0.01)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_shape_of_a_folder(family, tmp_path):
    shape, model = shape_of(str(make_qwen_folder(tmp_path, family))), load(tmp_path, device="cpu")
    assert (shape.patches, shape.frame_tokens) == (1024, 256)
    assert shape.kv_bytes_per_token == model.spec.kv_bytes_per_token // 2  # 16 bits and 32
    assert shape.head_dim == model.spec.head_dim
