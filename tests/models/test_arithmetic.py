"""Products of the language layers in 8-bit floating point numbers: what they are, and where they are refused."""

import pytest
import torch
import torch.nn.functional as F
from dense_attention import DenseAttention
from tiny import make_folder
from torch import nn

from onlooker.core.errors import InputError, ModelError
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.kernels.language_rows import eight_bits
from onlooker.models import load
from onlooker.models._arithmetic import Float8Arithmetic, arithmetic
from onlooker.world import make_episode


def there_and_back(rows):
    """What is left of rows in 8 bits."""
    found = eight_bits(rows.flatten(0, -2))
    return (found.codes.float() * found.scale[:, None]).to(rows.dtype).view_as(rows)


def in_eight_bits(network):
    """The stock layers with every linear layer of the decoder's taken there and back on both sides."""
    for layer in network.get_decoder().layers:
        for linear in [module for module in layer.modules() if isinstance(module, nn.Linear)]:
            weight, bias = there_and_back(linear.weight.detach()), linear.bias
            linear.forward = lambda x, weight=weight, bias=bias: F.linear(there_and_back(x), weight, bias)


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


@torch.no_grad()
def test_products_are_of_numbers_taken_there_and_back(folder):
    plain, model = load(folder, device="cpu"), load(folder, device="cpu")
    exact = load(folder, device="cpu")
    in_eight_bits(plain._network)
    model.compute_in("fp8")
    model.compute_in("fp8")
    model.compute_in("model")
    rows = torch.randn(9, model.spec.hidden_dim, generator=torch.Generator().manual_seed(1))
    wanted = plain.extend(rows, DenseAttention(plain, [5, 4]))
    for extend in (model.extend, model.extend_lean):
        torch.testing.assert_close(extend(rows, DenseAttention(model, [5, 4])), wanted, rtol=1e-3, atol=1e-3)
    other = exact.extend(rows, DenseAttention(exact, [5, 4]))
    assert 0.001 < (wanted - other).norm() / other.norm() < 0.2


@torch.no_grad()
def test_weights_take_half_and_none_lies_twice(folder):
    model = load(folder, device="cpu")
    layers = model._network.get_decoder().layers
    rows = torch.randn(3, model.spec.hidden_dim)
    before = model.extend(rows, DenseAttention(model, [3]))
    torch.testing.assert_close(model.extend_lean(rows, DenseAttention(model, [3])), before, rtol=1e-5, atol=1e-5)
    parts = [layers[0].self_attn.q_proj.weight, layers[0].self_attn.v_proj.weight]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    torch.testing.assert_close(model.extend(rows, DenseAttention(model, [3])), before, rtol=1e-5, atol=1e-5)
    model.compute_in("fp8")
    assert not sum(module.weight.numel() for module in layers.modules() if isinstance(module, nn.Linear))
    assert model.lean._joined[0].down.weight.element_size() == 1


def test_refused_in_one_line_where_it_cannot_be(folder, monkeypatch):
    model = load(folder, device="cpu")
    with pytest.raises(InputError, match="no such arithmetic"):
        model.compute_in("fp4")
    with pytest.raises(InputError, match="no such arithmetic"):
        arithmetic("fp4", torch.device("cpu"))
    with pytest.raises(ModelError, match="this device has no products of 8-bit"):
        Float8Arithmetic(torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    with pytest.raises(ModelError, match="NVIDIA L4"):
        Float8Arithmetic(torch.device("cuda"))
    narrow = load(folder, device="cpu")._network
    layer = narrow.get_decoder().layers[-1].mlp
    layer.down_proj = nn.Linear(layer.down_proj.in_features + 1, layer.down_proj.out_features)
    from onlooker.models._language import LeanLayers

    with pytest.raises(ModelError, match="do not fit 8-bit products"):
        LeanLayers(narrow.get_decoder(), "fp8")
    assert all(module.weight.numel() for module in narrow.modules() if isinstance(module, nn.Linear))


def test_a_session_answers_and_forks(tiny_folder):
    frames = list(make_episode(0, "test", 4).frames(fps=1.0))
    model = load(tiny_folder, device="cpu")
    engine = Engine(model, arithmetic="fp8")
    session = engine.open()
    for frame in frames:
        session.push(Frame(frame.image, frame.time_s))
    twin = session.fork()
    assert session.ask("What is there?", max_new_tokens=4).text == twin.ask("What is there?", max_new_tokens=4).text


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs Hopper or newer"
)
@pytest.mark.parametrize("tokens", [16, 58, 960])
@torch.no_grad()
def test_the_library_multiplies_what_the_plain_form_does(tokens):
    device, generator = torch.device("cuda"), torch.Generator("cuda").manual_seed(0)
    linear = [nn.Linear(3584, outputs, bias=True, device=device, dtype=torch.bfloat16) for outputs in (512, 3584)]
    exact = [(one.weight.clone(), one.bias.clone()) for one in linear]
    rows = torch.randn(tokens, 3584, generator=generator, device=device).to(torch.bfloat16)
    ours = Float8Arithmetic(device)
    weights = ours.joined(linear)
    ready = ours.ready(rows)
    got = ours.product(ready, weights).float()
    assert weights.scale is not None and weights.bias is not None
    wanted = F.linear(ready.codes.float(), weights.weight.float()) * ready.scale[:, None] * weights.scale
    wanted += weights.bias.float()
    plain = torch.cat([F.linear(rows, *one) for one in exact], dim=1).float()
    assert (got - wanted).norm() / wanted.norm() < 0.01
    assert (got - plain).norm() / plain.norm() < 0.06
