"""Blocks in codes on the device: a codec that loses nothing changes nothing, others little, and bytes shrink."""

import dataclasses
import random
from collections.abc import Mapping

import pytest
import torch
from stack import (
    KV_HEADS,
    LAYERS,
    Stack,
    ask,
    assert_same,
    digest,
    everything,
    new_store,
    noise,
    place,
    rotary,
    watch,
)
from torch import Tensor

from onlooker.core import registry
from onlooker.core.contracts import Codec
from onlooker.core.errors import CapacityError
from onlooker.core.spans import Plan, Recall, Tier
from onlooker.kvstore import KVStore, PackedAttention, tier_codecs
from onlooker.kvstore.coded import encoded_bytes

CODECS = ("int8", "fp8", "int4")


@dataclasses.dataclass(frozen=True)
class Exact(Codec):
    """Loses nothing, and is no plain form: what the store does with codes, without their error."""

    def parts(self, kv_heads: int, num_tokens: int, head_dim: int, dtype: torch.dtype) -> dict:
        return {"both": ((2, kv_heads, num_tokens, head_dim), dtype)}

    def encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        return {"both": torch.stack((keys, values), dim=-4)}

    def decode(self, parts: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        keys, values = parts["both"].to(dtype).unbind(-4)
        return keys, values


def exact_store(stack: Stack, **more) -> KVStore:
    store = KVStore(stack.spec, rotary, device_codec=Exact(), host_codec=Exact(), **more)
    watch(stack, store, 3, 1000, "prefix")
    return store


def of_device(layer, spans, scores) -> Recall:
    return Recall(tuple(span.id for span in spans if span.tier is Tier.DEVICE))


def pick_every_second(keys: Tensor, values: Tensor, sizes: list[int]) -> Tensor:
    rows = torch.arange(0, keys.shape[2], 2)
    return rows.expand(LAYERS, KV_HEADS, -1).contiguous()


def life(stack: Stack, store: KVStore, seed: int, steps: int = 40) -> list[Tensor]:
    """All outputs of a random life: watching, parking, forgetting in the middle, melting, questions, going back."""
    chosen, outs, number, views = random.Random(seed), [], 0, []
    for _ in range(steps):
        resident = [span.id for span in store.spans if span.tier is Tier.DEVICE and span.kind != "prefix"]
        melted = {name for one in store._window.melted.values() for name in one.blocks}
        free = [block for block in resident if block not in melted]
        act = chosen.choice(["watch"] * 5 + ["park", "forget", "oldest", "melt", "ask", "hold", "back", "load"])
        if act == "park" and free:
            store.apply(Plan(park=tuple(sorted(chosen.sample(free, min(2, len(free)))))))
        elif act == "forget" and free:
            store.apply(Plan(forget=tuple(sorted(chosen.sample(free, min(2, len(free)))))))
        elif act == "oldest" and free and free[0] == resident[0]:
            store.apply(Plan(forget=(free[0],)))
        elif act == "melt" and len(free) > 3 and not melted:
            first = chosen.randrange(len(free) - 2)
            run = [block for block in resident if free[first] <= block <= free[first + 2]]
            store.apply(Plan(melt=tuple(run)), pick_every_second)
        elif act == "ask":
            with store.question(chosen.choice([everything, of_device]), scored=chosen.random() < 0.3) as view:
                outs.append(ask(stack, view, scored=not view._contexts))
                outs.append(torch.tensor(list(view.attention_mass().values())))
        elif act == "hold":  # a question that lasts while the stream goes on
            views.append(store.question(of_device))
            if len(views) > 2:
                with views.pop(0) as view:
                    outs.append(ask(stack, view))
        elif act == "back" and resident:
            span = watch_one(stack, store, number)
            store.take_back(span)
        elif act == "load":
            again = KVStore(stack.spec, rotary, device_codec=store.device_codec, host_codec=store.host_codec)
            again.load(*store.export())
            assert digest(again) == digest(store)
            for view in views:
                view.close()
            views, store = [], again.fork() if chosen.random() < 0.5 else again
        else:
            outs.append(watch(stack, store, 2 + chosen.randrange(5), number))
            number += 1
    for view in views:
        view.close()
    return outs


def watch_one(stack: Stack, store: KVStore, number: int):
    positions, extent = place(3)
    chunk = store.begin("vision", float(number), float(number), positions, extent)
    stack.extend(noise(3, 500), PackedAttention([(chunk, 3)]))
    return chunk.seal()


@pytest.mark.parametrize("seed", range(24))
def test_a_codec_that_loses_nothing_changes_nothing(seed):
    stack = Stack()
    got, wanted = life(stack, exact_store(stack), seed), life(stack, new_store(stack), seed)
    assert len(got) == len(wanted) > 10
    for one, other in zip(got, wanted, strict=True):
        assert_same(one, other) if one.ndim == 2 else torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("codec", "near"), [("int8", 0.06), ("fp8", 0.5), ("int4", 0.8)])
def test_codecs_are_near_and_weigh_what_they_say(codec, near):
    stack = Stack()
    store, exact = new_store(stack, **tier_codecs({"device": codec})), new_store(stack)
    outs = [[watch(stack, each, 6, number) for number in range(12)] for each in (store, exact)]
    got, wanted = (torch.cat(each[1:]) for each in outs)
    error = ((got - wanted).norm() / wanted.norm()).item()
    assert 0 < error < near, f"off by {error:.3f}"
    assert store.num_bytes()["device_codes"] == 12 * encoded_bytes(store.spec, store.device_codec, 6)
    with store.question(of_device) as view:
        assert view._whole is not None and view._whole.coded is not None, "read where it lies"
        assert view.num_bytes() < 3 * 64 * store.spec.kv_bytes_per_token
        assert_same(ask(stack, view), decoded_answer(stack, store))


def decoded_answer(stack: Stack, store: KVStore) -> Tensor:
    """What a question sees when every block is decoded before it is asked."""
    with store.question(of_device) as view:
        view._whole = view._whole.decoded()
        view._contexts = view._whole.layers()
        return ask(stack, view)


@pytest.mark.parametrize("codec", CODECS)
def test_codes_travel_to_the_host_and_back_as_they_are(codec):
    stack = Stack()
    store = new_store(stack, **tier_codecs({"device": codec}))
    for number in range(5):
        watch(stack, store, 4, number)
    known = {name: part.clone() for name, part in store._window.coded[2].parts.items()}
    store.apply(Plan(park=(2,)))
    assert all(torch.equal(part, store._parked.blocks[2].parts[name]) for name, part in known.items())


@pytest.mark.parametrize("theirs", ["bf16", *CODECS])
@pytest.mark.parametrize("ours", ["bf16", *CODECS])
def test_a_snapshot_of_one_codec_loads_into_another(theirs, ours):
    """Decoded, and encoded by the store's own; of the same codec to the bit. Then it goes on."""
    stack = Stack()
    store = new_store(stack, **tier_codecs({"device": theirs}))
    for number in range(6):
        watch(stack, store, 4 + number % 2, number)
    store.apply(Plan(forget=(2,), park=(3,)))
    other = KVStore(stack.spec, rotary, **tier_codecs({"device": ours}))
    other.load(*store.export())
    assert (digest(other) == digest(store)) == (ours == theirs)
    assert [span.id for span in other.spans] == [span.id for span in store.spans]
    for span in other.spans:
        if span.tier is Tier.DEVICE and span.id in store._window.coded and ours == "bf16":
            keys, values = store.device_codec.decode(store._window.coded[span.id].parts, stack.spec.dtype)
            block = other._entries[span.id].block
            assert torch.equal(other._window.written_keys(block), keys)
            assert torch.equal(other._window.values(block), values)
    got, wanted = (watch(stack, each, 4, 9) for each in (other, store))
    assert ((got - wanted).norm() / wanted.norm()).item() < 1.2
    with other.question(everything) as view:
        ask(stack, view)


def test_budgets_count_codes_and_a_full_device_changes_nothing():
    stack = Stack()
    store = new_store(stack, **tier_codecs({"device": "int8"}))
    for number in range(4):
        watch(stack, store, 6, number)
    parts = store.num_bytes()
    held = sum(size for name, size in parts.items() if name.startswith("device")) - parts["device_rows"]
    # The arena may shrink to what is written and what lies before it: not to less.
    store.device_budget_bytes = held + 8 * stack.spec.kv_bytes_per_token
    before = digest(store)
    with pytest.raises(CapacityError, match="do not fit on the device"):
        watch(stack, store, 6, 5)
    assert digest(store) == before
    with pytest.raises(CapacityError):
        KVStore(stack.spec, rotary, device_budget_bytes=200, **tier_codecs({"device": "int8"})).load(*store.export())
    store.device_budget_bytes = None
    watch(stack, store, 6, 5)


def test_damaged_codes_are_refused():
    stack = Stack()
    store = new_store(stack, **tier_codecs({"device": "int8"}))
    watch(stack, store, 6, 1)
    watch(stack, store, 6, 2)
    tensors, facts = store.export()
    fresh = KVStore(stack.spec, rotary, **tier_codecs({"device": "int8"}))
    for change in ({"is_coded": False}, {"is_coded": 1}, {"is_anchor": True}, {"offset": None}):
        blocks = [dict(fact) for fact in facts["blocks"]]
        blocks[2] |= change
        with pytest.raises(Exception, match="snapshot"):
            fresh.load(tensors, {**facts, "blocks": blocks})
    less = {name: part for name, part in tensors.items() if name != "coded.1.key_codes"}
    with pytest.raises(Exception, match="damaged"):
        fresh.load(less, facts)
    assert not fresh.spans


def test_forks_share_codes():
    stack = Stack()
    store = new_store(stack, **tier_codecs({"device": "int8"}))
    for number in range(4):
        watch(stack, store, 6, number)
    twin = store.fork()
    assert twin._window.coded[2] is store._window.coded[2]
    alone = store.fork()
    alone.unshare()
    assert alone._window.coded[2].address != store._window.coded[2].address and digest(alone) == digest(store)
    store.apply(Plan(forget=(1, 2)))
    assert_same(watch(stack, twin, 4, 7), watch(stack, registry_twin(stack), 4, 7))


def registry_twin(stack: Stack) -> KVStore:
    """The same stream, on a store of its own."""
    store = new_store(stack, device_codec=registry.make("codec", "int8"))
    for number in range(4):
        watch(stack, store, 6, number)
    return store
