"""A store as plain tensors and JSON-able facts, and back: continuing is bit for bit the same."""

import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onlooker.core import registry
from onlooker.core.checks import number, whole
from onlooker.core.contracts import Codec
from onlooker.core.errors import CapacityError, InputError
from onlooker.core.spans import Span, SpanKind, Tier
from onlooker.kvstore.arena import Arena
from onlooker.kvstore.blocks import Block, Entry
from onlooker.kvstore.coded import encoded_bytes, parts_of
from onlooker.kvstore.melting import Melted, Packed
from onlooker.kvstore.parked import Parked
from onlooker.kvstore.placing import Placing

if TYPE_CHECKING:
    from onlooker.kvstore.store import KVStore

FORMAT = 7


def export(store: "KVStore") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """See `KVStore.export`. Of anchors that have moved, the keys travel as they lie and as they were written: made
    anew, their last bits could differ."""
    if store.spec.device.type == "cuda":
        torch.cuda.synchronize(store.spec.device)
    window = store._window
    live = dict(zip(("keys", "values"), window.tensors(), strict=True))
    tensors = {f"device.{name}": tensor.to("cpu", copy=True).contiguous() for name, tensor in live.items()}
    tensors["signals"] = store._signals.export().cpu()
    entries = list(store._entries.values())
    none = torch.empty(store.spec.position_axes, 0, dtype=torch.int64)
    tensors["positions"] = torch.cat([none, *(entry.block.positions.cpu() for entry in entries)], dim=1)
    parked = [entry.span.id for entry in entries if entry.span.tier is Tier.HOST]
    tensors |= {
        f"host.{block}.{name}": part for block in parked for name, part in store._parked.blocks[block].parts.items()
    }
    tensors |= {
        f"coded.{entry.block.id}.{name}": part.to("cpu", copy=True)
        for entry in entries
        if (coded := window.coded.get(entry.block.id)) is not None
        for name, part in coded.parts.items()
    }
    tensors |= {f"owners.{run}": one.owners.cpu() for run, one in window.melted.items()}
    for run, one in window.melted.items():
        if one.packed is not None:
            tensors |= {f"packed.{run}": one.packed.written.cpu(), f"places.{run}": one.packed.places.cpu()}
    tensors |= {f"written.{block}": keys.to("cpu", copy=True) for block, keys in window.written.items()}
    facts = {
        "format": FORMAT,
        "sizes": _sizes(store),
        "device_codec": registry.describe(store.device_codec),
        "host_codec": registry.describe(store.host_codec),
        "disk_codec": registry.describe(store._parked.disk_codec),
        "next_id": store._next_id,
        "blocks": [
            {
                "id": entry.span.id,
                "kind": entry.span.kind,
                "num_tokens": entry.span.num_tokens,
                "run": entry.block.id if entry.block.id in window.melted else None,
                "start_s": entry.span.start_s,
                "end_s": entry.span.end_s,
                "extent": entry.block.extent,
                "clock": entry.block.clock,
                "written": list(entry.block.written),
                "is_anchor": entry.block.id in window.written,
                "is_coded": entry.block.id in window.coded,
                "on_disk": (there := store._parked.blocks.get(entry.span.id)) is not None and there.on_disk,
                "offset": list(window.offsets[entry.block.id]) if entry.block.id in window.offsets else None,
            }
            for entry in entries
        ],
    }
    return tensors, facts


def load(store: "KVStore", tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """See `KVStore.load`. Blocks of another codec than the store's are decoded, and encoded by its own. On the device
    blocks that a store in codes had as they are computed stay so; of one without codes those do that have moved or
    melted, or lie before one that has."""
    if not isinstance(facts, Mapping) or set(facts) != _FACTS:
        raise InputError("the stored blocks are damaged", given=str(facts)[:200], do="take a new snapshot")
    if facts["format"] != FORMAT or facts["sizes"] != _sizes(store):
        raise InputError(
            "the snapshot belongs to another model",
            given=f"{facts.get('sizes')} where {_sizes(store)} is needed",
            do="open it with the model, dtype and version it was made with",
        )
    _check_blocks(store, facts)
    written_by = {False: _codec(store.host_codec, facts["host_codec"])}
    written_by[True] = _codec(store._parked.disk_codec, facts["disk_codec"])
    coded_by = _codec(store.device_codec, facts["device_codec"])
    _check_tensors(store, coded_by, written_by, tensors, facts["blocks"])
    lead = _lead(store, coded_by, facts["blocks"])
    _check_budgets(store, tensors, facts["blocks"], lead)
    parked = store._parked.blank()
    for fact in facts["blocks"]:
        if fact["offset"] is None:
            _park(parked, fact, written_by[fact["on_disk"]], tensors)
    store._reset()
    store._parked = parked
    window, device = store._window, store.spec.device
    runs, laid = _runs(facts["blocks"]), _Laid(store, coded_by, tensors)
    window.arena = Arena(store.spec, lead)
    start = 0
    for fact in facts["blocks"]:
        resident, run = fact["offset"] is not None, fact["run"]
        tier = Tier.DEVICE if resident else Tier.HOST
        span = Span(fact["id"], fact["kind"], fact["num_tokens"], fact["start_s"], fact["end_s"], tier)
        end = start + (fact["num_tokens"] if run is None else 0)
        positions = tensors["positions"][:, start:end].to(device)
        start = end
        block = window.blocks.get(-1 if run is None else run)
        if block is None:
            name, size = (span.id, span.num_tokens) if run is None else (run, tensors[f"owners.{run}"].shape[2])
            block = Block(name, size, fact["extent"], positions, fact["clock"], tuple(fact["written"]))
            if resident:
                laid.lay(block, fact, in_rows=window.tail < lead)
            store._position_bytes += block.positions.nbytes
        store._entries[span.id] = Entry(span, block)
    window.melted = {run: _melted(run, names, tensors, device) for run, names in runs.items()}
    anchors = {store._entries[fact["id"]].block.id for fact in facts["blocks"] if fact["is_anchor"]}
    window.written = {block: tensors[f"written.{block}"].to(device, copy=True) for block in anchors}
    store._next_id = facts["next_id"]
    window.placing = Placing.behind(reversed(window.blocks.values()), window.offsets, store.spec.position_axes)
    store._signals.load([fact["id"] for fact in facts["blocks"]], tensors["signals"].to(device))


def _melted(run: int, names: tuple[int, ...], tensors: Mapping[str, Tensor], device: torch.device) -> Melted:
    """What a run holds, and where its rows were written if they were moved together."""
    owners, packed = tensors[f"owners.{run}"].to(device, copy=True), None
    if f"packed.{run}" in tensors:
        packed = Packed(*(tensors[f"{name}.{run}"].to(device, copy=True) for name in ("packed", "places")))
    return Melted(names, owners, packed)


class _Laid:
    """Blocks of a snapshot on their way to the device, in stream order."""

    def __init__(self, store: "KVStore", codec: Codec, tensors: Mapping[str, Tensor]) -> None:
        self._spec, self._window, self._own = store.spec, store._window, store.device_codec
        self._codec, self._tensors = codec, tensors
        self._row = 0
        """Rows that were taken so far of those that lie as they were computed."""

    def lay(self, block: Block, fact: Mapping[str, Any], in_rows: bool) -> None:
        """Put the next block where it belongs: in rows, or in codes."""
        window, spec, offset = self._window, self._spec, tuple(fact["offset"])
        parts, states = {}, ()
        if fact["is_coded"]:
            names = self._codec.parts(1, 1, 2, spec.dtype)
            parts = {name: self._tensors[f"coded.{block.id}.{name}"].to(spec.device) for name in names}
            if in_rows or registry.describe(self._codec) != registry.describe(self._own):
                states = self._codec.decode(parts, spec.dtype)
        else:
            rows = slice(self._row, self._row + block.num_tokens)
            states = tuple(self._tensors[f"device.{name}"][:, :, rows].to(spec.device) for name in ("keys", "values"))
            self._row = rows.stop
        if in_rows:
            for tensor, given in zip(window.arena.tensors, states, strict=True):
                tensor[:, :, window.tail : window.tail + block.num_tokens] = given
            window.take_rows(block, offset, is_prefix=fact["kind"] == "prefix")
        else:
            window.put(block, self._own.encode(*states) if states else parts, offset)


def _lead(store: "KVStore", codec: Codec, blocks: list[Mapping[str, Any]]) -> int:
    """Rows of the blocks on the device that will lie as they are computed: the oldest, or all."""
    resident = [fact for fact in blocks if fact["offset"] is not None]
    if not store.device_codec.plain:
        stays = [not fact["is_coded"] if not codec.plain else _stays_as_it_is(fact) for fact in resident]
        resident = resident[: len(stays) - stays[::-1].index(True) if True in stays else 0]
    return sum(fact["num_tokens"] for fact in resident)


def _stays_as_it_is(fact: Mapping[str, Any]) -> bool:
    return fact["kind"] == "prefix" or fact["is_anchor"] or fact["run"] is not None


def _park(parked: Parked, fact: Mapping[str, Any], codec: Codec, tensors: Mapping[str, Tensor]) -> None:
    names = codec.parts(1, 1, 2, parked.spec.dtype)
    parts = {name: tensors[f"host.{fact['id']}.{name}"] for name in names}
    parked.restore(fact["id"], fact["num_tokens"], parts, codec, fact["on_disk"])


def _codec(own: Codec, told: Any) -> Codec:
    """The codec that wrote a snapshot's blocks: the store's own, or another that comes with this library."""
    if told == registry.describe(own):
        return own
    if not isinstance(told, str) or told.partition(":")[0] not in registry.names("codec"):
        do = f"open it with that codec, or take a new one with one of: {', '.join(registry.names('codec'))}"
        raise InputError("the snapshot's blocks are in a form that is not known", given=str(told)[:80], do=do)
    return registry.make("codec", told)


def _runs(blocks: list[Mapping[str, Any]]) -> dict[int, tuple[int, ...]]:
    """The blocks that were melted together, by run."""
    runs: dict[int, tuple[int, ...]] = {}
    for fact in blocks:
        if fact["run"] is not None:
            runs[fact["run"]] = (*runs.get(fact["run"], ()), fact["id"])
    return runs


_FACTS = {"format", "sizes", "device_codec", "host_codec", "disk_codec", "next_id", "blocks"}
_PLACE = {"extent", "clock", "written", "is_anchor", "is_coded", "on_disk", "offset"}
_BLOCK = {"id", "kind", "num_tokens", "run", "start_s", "end_s"} | _PLACE


def _check_blocks(store: "KVStore", facts: Mapping[str, Any]) -> None:
    """Raise `InputError` unless these facts describe blocks that a store could have written."""
    if not isinstance(facts["blocks"], list):
        raise InputError("the stored blocks are damaged", given=str(facts["blocks"])[:200], do="take a new snapshot")
    next_id, has_codes, before = 0, False, {"run": None}
    for order, fact in enumerate(facts["blocks"]):
        name = f"block {order} of the snapshot"
        if not isinstance(fact, Mapping) or set(fact) != _BLOCK or fact["kind"] not in typing.get_args(SpanKind):
            raise InputError(f"{name} is damaged", given=str(fact)[:200], do="take a new snapshot")
        last = next_id
        next_id = whole(f"id of {name}", fact["id"], least=next_id, most=2**53) + 1
        whole(f"num_tokens of {name}", fact["num_tokens"], least=1 if fact["run"] is None else 0)
        if fact["run"] is not None:
            # Neighbours on the device: what lies between them may have been parked before they melted.
            goes_on = fact["run"] == before["run"] and all(fact[key] == before[key] for key in _PLACE)
            whole(f"run of {name}", fact["run"], least=0 if goes_on else last, most=fact["id"])
            if fact["offset"] is None:
                raise InputError(f"{name} cannot be melted", given=str(fact)[:200], do="take a new snapshot")
        whole(f"extent of {name}", fact["extent"], least=0, most=2**31)
        if fact["clock"] is not None:
            whole(f"clock of {name}", fact["clock"], least=-(2**53), most=2**53)
        # Times of different blocks are the caller's: a store takes them in any order, so a saved one may have any.
        start_s = number(f"start_s of {name}", fact["start_s"])
        number(f"end_s of {name}", fact["end_s"], least=start_s)
        places = [key for key in ("written", "offset") if key == "written" or fact[key] is not None]
        for key in places:
            axes = store.spec.position_axes
            if not isinstance(fact[key], list) or len(fact[key]) != axes:
                raise InputError(f"{key} of {name} has {axes} axes", given=str(fact[key])[:80])
            for place in fact[key]:
                whole(f"{key} of {name}", place, least=-(2**53), most=2**53)
        moved = fact["offset"] is not None and fact["offset"] != fact["written"]
        if not isinstance(fact["is_anchor"], bool) or (moved and not fact["is_anchor"]):
            raise InputError(f"{name} is damaged", given=str(fact)[:200], do="take a new snapshot")
        if fact["is_anchor"] and fact["offset"] is None:
            raise InputError(f"{name} cannot be an anchor", given=str(fact)[:200], do="take a new snapshot")
        if fact["offset"] is not None:
            before = fact
            has_codes |= fact["is_coded"] is True
        stays = fact["offset"] is None or fact["run"] is not None or fact["is_anchor"] or fact["kind"] == "prefix"
        if not isinstance(fact["is_coded"], bool) or (stays and fact["is_coded"]):
            raise InputError(f"{name} cannot lie in codes", given=str(fact)[:200], do="take a new snapshot")
        if not isinstance(fact["on_disk"], bool) or (fact["on_disk"] and fact["offset"] is not None):
            raise InputError(f"{name} cannot lie on the disk", given=str(fact)[:200], do="take a new snapshot")
        if has_codes and fact["offset"] is not None and not fact["is_coded"]:
            raise InputError(f"{name} lies behind blocks in codes", given=str(fact)[:200], do="take a new snapshot")
        if fact["kind"] == "prefix" and (order or fact["offset"] is None):
            raise InputError(f"{name} cannot be the prefix", given=str(fact)[:200], do="take a new snapshot")
    whole("next_id of the snapshot", facts["next_id"], least=next_id, most=2**53)


def _check_tensors(
    store: "KVStore",
    on_device: Codec,
    parked: Mapping[bool, Codec],
    tensors: Mapping[str, Tensor],
    blocks: list[Mapping[str, Any]],
) -> None:
    """Raise `InputError` unless the tensors are of the shapes and types that these blocks need, and no others."""
    spec = store.spec
    row = (spec.num_layers, spec.num_kv_heads)
    resident = sum(fact["num_tokens"] for fact in blocks if fact["offset"] is not None and not fact["is_coded"])
    single = [fact["num_tokens"] for fact in blocks if fact["run"] is None]
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        f"device.{name}": ((*row, resident, spec.head_dim), spec.dtype) for name in ("keys", "values")
    }
    wanted["signals"] = (spec.num_layers, len(blocks), spec.num_kv_heads * spec.head_dim), torch.float32
    wanted["positions"] = (spec.position_axes, sum(single)), torch.int64
    sizes = {fact["id"]: fact["num_tokens"] for fact in blocks}
    rows = {run: sum(sizes[name] for name in names) for run, names in _runs(blocks).items()}
    wanted |= {f"owners.{run}": ((*row, count), torch.int32) for run, count in rows.items()}
    for run, count in rows.items():
        if f"packed.{run}" in tensors:
            wanted[f"packed.{run}"] = (*row, count, spec.head_dim), spec.dtype
            wanted[f"places.{run}"] = (*row, count), torch.int64
    for fact in blocks:
        if fact["is_anchor"]:
            run = fact["run"]
            name, size = (fact["id"], fact["num_tokens"]) if run is None else (run, rows[run])
            wanted[f"written.{name}"] = (*row, size, spec.head_dim), spec.dtype
        if fact["offset"] is None or fact["is_coded"]:
            tier, coder = ("coded", on_device) if fact["is_coded"] else ("host", parked[fact["on_disk"]])
            parts = parts_of(spec, coder, fact["num_tokens"])
            wanted |= {f"{tier}.{fact['id']}.{name}": part for name, part in parts.items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != wanted:
        wrong = sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name))[0]
        given = f"{wrong} is {found.get(wrong, 'missing')} and should be {wanted.get(wrong, 'absent')}"
        raise InputError("the stored keys and values are damaged", given=given, do="take a new snapshot")
    for run, names in _runs(blocks).items():
        least, most = tensors[f"owners.{run}"].aminmax()
        if least < 0 or most >= len(names):
            given = f"rows of blocks {int(least)} to {int(most)} of {len(names)}"
            raise InputError("the stored owners of melted rows are damaged", given=given, do="take a new snapshot")


def _check_budgets(store: "KVStore", tensors: Mapping[str, Tensor], blocks: list[Mapping[str, Any]], lead: int) -> None:
    parked = [fact["num_tokens"] for fact in blocks if fact["offset"] is None and store._parked.tier is None]
    host = sum(encoded_bytes(store.spec, store.host_codec, size) for size in parked)
    elsewhere = ("host.", "coded.", "device.")
    device = sum(tensor.nbytes for name, tensor in tensors.items() if not name.startswith(elsewhere))
    device += lead * store.spec.kv_bytes_per_token
    for size in (fact["num_tokens"] for fact in blocks if fact["offset"] is not None):
        device += encoded_bytes(store.spec, store.device_codec, size) if lead <= 0 else 0
        lead -= size
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
