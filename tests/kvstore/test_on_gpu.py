"""The same life on a GPU and on the CPU: pinned slabs, gathers, and attention agree."""

import dataclasses

import pytest
import torch
from stack import HEAD_DIM, KV_HEADS, LAYERS, QUERY_HEADS, everything, make_spec, place, rotary

from onlooker.core.contracts import ModelSpec
from onlooker.core.spans import Plan
from onlooker.kvstore import KVStore

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def rotary_there(positions):
    cos, sin = rotary(positions.cpu())
    return cos.to(positions.device), sin.to(positions.device)


def live(spec: ModelSpec) -> tuple[torch.Tensor, KVStore]:
    """All attention outputs of a short life: watching, parking, a question with and without scores."""
    store = KVStore(spec, rotary_there)
    generator, outs = torch.Generator().manual_seed(3), []

    def attend(segment, count):
        for layer in range(LAYERS):
            sizes = (QUERY_HEADS, KV_HEADS, KV_HEADS)
            parts = [torch.randn(heads, count, HEAD_DIM, generator=generator) for heads in sizes]
            queries, keys, values = (part.to(spec.device, spec.dtype) for part in parts)
            outs.append(segment.attend(layer, queries, keys, values, HEAD_DIM**-0.5).float().cpu().flatten())

    for number in range(30):
        chunk = store.begin("vision" if number else "prefix", 0.0, 0.0, *place(5))
        attend(chunk, 5)
        chunk.seal()
        if number > 8:
            store.apply(Plan(park=(number - 8,), forget=(number - 9,) if number > 20 else ()))
    for scored in (False, True):
        with store.question(everything, scored=scored) as view:
            if scored:
                attend(view.retrieval(*place(3)), 3)
            for count in (70, 1, 1):
                attend(view.segment(*place(count)), count)
            outs.append(torch.tensor(list(view.attention_mass().values())))
    return torch.cat(outs), store


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_gpu_equals_cpu(dtype, tolerance):
    there = dataclasses.replace(make_spec(dtype=dtype), device=torch.device("cuda"))
    (wanted, _), (got, store) = live(make_spec()), live(there)
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    assert all(part.is_pinned() for slab in store._parked.blocks.values() for part in slab.parts.values())
    loaded = KVStore(there, rotary_there)
    loaded.load(*store.export())
    tensors, again = store.export()[0], loaded.export()[0]
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
