"""Low-rank adapters of a built-in model (LoRA, Hu et al., arXiv 2106.09685), added to its weights when it is loaded.

A folder with `adapter.int8.safetensors` beside its `config.json` holds no weights of its own: `onlooker.adapts` in that
config names the folder beside it whose weights are meant. For each adapted matrix `NAME` the file has `NAME/up`
`[rank, rows]` and `NAME/down` `[rank, cols]`; the sum over ranks of their outer products is added. Eight bits with a
scale for every rank, as in `_eight_bits.py`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

FILE = "adapter.int8.safetensors"
_UP, _DOWN, _SCALE = "/up", "/down", "/scale"


def pack(maps: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Adapters by the name of their matrix, each as `[rows, rank]` and `[rank, cols]`, in eight bits."""
    out: dict[str, Tensor] = {}
    for name, (up, down) in maps.items():
        for end, rows in ((_UP, up.T.float()), (_DOWN, down.float())):
            scale = (rows.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
            out[name + end] = (rows / scale).round().clamp(-127, 127).to(torch.int8).contiguous()
            out[name + end + _SCALE] = scale[:, 0].contiguous()
    return out


def unpack(packed: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Adapters as `pack` took them, float32."""
    names = [one.removesuffix(_UP) for one in packed if one.endswith(_UP)]
    ends = {name: [packed[name + end].float() * packed[name + end + _SCALE][:, None] for end in (_UP, _DOWN)]
            for name in names}  # fmt: skip
    return {name: (up.T.contiguous(), down) for name, (up, down) in ends.items()}


def added(weights: Mapping[str, Tensor], packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the adapters of `pack` added, float32. Raises `ValueError` for adapters of another model."""
    out = dict(weights)
    for name, (up, down) in unpack(packed).items():
        if name not in out or out[name].shape != (up.shape[0], down.shape[1]):
            raise ValueError(f"the adapter is for another model: {name} {[up.shape[0], down.shape[1]]}")
        out[name] = out[name].float() + up @ down
    return out


def read(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with the adapters of a file added."""
    from safetensors.torch import load_file

    return added(weights, load_file(path))
