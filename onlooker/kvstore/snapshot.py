"""A store as plain tensors and JSON-able facts, and back: continuing is bit for bit the same."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onlooker.core.errors import CapacityError, InputError
from onlooker.core.spans import Span, Tier
from onlooker.kvstore.arena import Arena, allocate
from onlooker.kvstore.blocks import Block, Entry
from onlooker.kvstore.placing import Placing

if TYPE_CHECKING:
    from onlooker.kvstore.store import KVStore

FORMAT = 2


def export(store: "KVStore") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """See `KVStore.export`. The rotated keys travel too: made anew, their last bits could differ."""
    if store.spec.device.type == "cuda":
        torch.cuda.synchronize(store.spec.device)
    window = store._window
    live = dict(zip(("keys", "values", "rotated"), window.tensors(), strict=True))
    tensors = {f"device.{name}": tensor.to("cpu", copy=True).contiguous() for name, tensor in live.items()}
    tensors["signals"] = store._signals.export().cpu()
    entries = list(store._entries.values())
    none = torch.empty(store.spec.position_axes, 0, dtype=torch.int64)
    tensors["positions"] = torch.cat([none, *(entry.block.positions.cpu() for entry in entries)], dim=1)
    parked = [entry.span.id for entry in entries if entry.span.tier is Tier.HOST]
    tensors |= {f"host.{block}": store._host[block] for block in parked}
    facts = {
        "format": FORMAT,
        "sizes": _sizes(store),
        "next_id": store._next_id,
        "blocks": [
            {
                "id": entry.span.id,
                "kind": entry.span.kind,
                "num_tokens": entry.span.num_tokens,
                "start_s": entry.span.start_s,
                "end_s": entry.span.end_s,
                "extent": entry.block.extent,
                "clock": entry.block.clock,
                "offset": window.offsets.get(entry.span.id),
            }
            for entry in entries
        ],
    }
    return tensors, facts


def load(store: "KVStore", tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """See `KVStore.load`."""
    if facts.get("format") != FORMAT or facts["sizes"] != _sizes(store):
        raise InputError(
            "the snapshot belongs to another model",
            given=f"{facts.get('sizes')} where {_sizes(store)} is needed",
            do="open it with the model, dtype and version it was made with",
        )
    _check_budgets(store, tensors)
    store._reset()
    window, device = store._window, store.spec.device
    live = [tensors[f"device.{name}"] for name in ("keys", "values", "rotated")]
    window.arena = Arena(store.spec, live[0].shape[2])
    for target, source in zip(window.arena.tensors, live, strict=True):
        target.copy_(source)
    start = 0
    for fact in facts["blocks"]:
        end = start + fact["num_tokens"]
        positions = tensors["positions"][:, start:end].to(device)
        block = Block(fact["id"], fact["num_tokens"], fact["extent"], positions, fact["clock"])
        start = end
        resident = fact["offset"] is not None
        tier = Tier.DEVICE if resident else Tier.HOST
        span = Span(block.id, fact["kind"], block.num_tokens, fact["start_s"], fact["end_s"], tier)
        store._entries[block.id] = Entry(span, block)
        store._position_bytes += block.positions.nbytes
        if resident:
            window.append(block, is_prefix=fact["kind"] == "prefix")
            window.offsets[block.id] = tuple(fact["offset"])
        else:
            _park(store, block.id, tensors[f"host.{block.id}"])
    store._next_id = facts["next_id"]
    window.placing = Placing.behind(reversed(window.blocks.values()), window.offsets, store.spec.position_axes)
    store._signals.load([fact["id"] for fact in facts["blocks"]], tensors["signals"].to(device))


def _park(store: "KVStore", block: int, source: Tensor) -> None:
    pinned = store.spec.device.type == "cuda"
    slab = allocate(tuple(source.shape), source.dtype, torch.device("cpu"), pinned=pinned)
    store._host[block] = slab.copy_(source)
    store._host_bytes += slab.nbytes


def _check_budgets(store: "KVStore", tensors: Mapping[str, Tensor]) -> None:
    host = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("host."))
    device = sum(tensor.nbytes for name, tensor in tensors.items() if not name.startswith("host."))
    for tier, needed, allowed in (
        ("device", device, store.device_budget_bytes),
        ("host", host, store.host_budget_bytes),
    ):
        if allowed is not None and needed > allowed:
            raise CapacityError(
                f"the snapshot does not fit into the {tier} budget",
                given=f"{needed} bytes needed, {allowed} allowed",
                do=f"raise the {tier} budget",
            )


def _sizes(store: "KVStore") -> dict[str, Any]:
    spec = store.spec
    return {
        "layers": spec.num_layers,
        "kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "axes": spec.position_axes,
        "dtype": str(spec.dtype).removeprefix("torch."),
    }
