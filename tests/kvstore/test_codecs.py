"""Parked blocks in fewer bits: what a question sees of them, what they weigh, and how they are saved."""

import pytest
import torch
from stack import Stack, ask, assert_same, digest, everything, new_store, noise, packed_past, place, rotary, watch

from onlooker.core import registry
from onlooker.core.errors import CapacityError, InputError
from onlooker.core.spans import Plan, Tier
from onlooker.kvstore import KVStore, tier_codecs
from onlooker.kvstore.coded import encoded_bytes

CODECS = registry.names("codec")
NEAR = {"bf16": 0.0, "fp8": 0.4, "int4": 0.6, "int8": 0.05, "vidkv": 1.5}


def watched(codec: str, frames: int = 8, parked=(2, 3, 4, 6), **more) -> tuple[Stack, KVStore]:
    stack = Stack()
    store = new_store(stack, **tier_codecs({"host": codec}), **more)
    for number in range(frames):
        watch(stack, store, 3 + number % 3, number)
    store.apply(Plan(park=tuple(parked)))
    return stack, store


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_a_question_sees_what_the_codec_gives_back(codec, scored):
    """To rounding against attention over what it gives back, and near what was stored."""
    stack, store = watched(codec)
    with store.question(everything, scored=scored) as view:
        got = ask(stack, view, scored=scored)
    if not scored:
        past, reach = packed_past(store, [span.id for span in store.spans])
        with store.question(everything) as view:
            first = ask(stack, view, (4,))
        wanted, _ = stack.dense(noise(4, 77), place(4)[0] + reach, past)
        assert_same(first, wanted)
    _, exact = watched("bf16")
    with exact.question(everything, scored=scored) as view:
        wanted = ask(stack, view, scored=scored)
    error = ((got - wanted).norm() / wanted.norm()).item()
    assert error <= NEAR[codec] + 1e-6, f"{codec} is off by {error:.3f}"
    if codec != "bf16":
        assert error > 0, "it was coded"


@pytest.mark.parametrize("codec", CODECS)
def test_bytes_are_those_of_the_codec_and_budgets_count_them(codec):
    _, store = watched(codec)
    sizes = [
        encoded_bytes(store.spec, store.host_codec, span.num_tokens) for span in store.spans if span.tier is Tier.HOST
    ]
    assert store.num_bytes()["host_rows"] == sum(sizes)
    _, tight = watched(codec, host_budget_bytes=sum(sizes))
    before = digest(tight)
    with pytest.raises(CapacityError, match="host memory"):
        tight.apply(Plan(park=(5,)))
    assert digest(tight) == before
    tight.apply(Plan(forget=(2, 3)))
    assert tight.num_bytes()["host_rows"] == sum(sizes[2:])


def test_a_store_in_few_bits_weighs_what_they_say():
    spec = Stack().spec
    bytes_of = {name: encoded_bytes(spec, registry.make("codec", name), 60) for name in CODECS}
    assert bytes_of["bf16"] == 60 * spec.kv_bytes_per_token
    # Float32 here, and heads of 12 numbers: scales of tokens weigh more than beside 128.
    assert bytes_of["int4"] < 0.22 * bytes_of["bf16"] < bytes_of["int8"] < 0.35 * bytes_of["bf16"]


@pytest.mark.parametrize("codec", CODECS)
def test_saved_it_goes_on_to_the_bit_and_forks_share_slabs(codec):
    stack, store = watched(codec)
    twin, loaded = store.fork(), KVStore(stack.spec, rotary, **tier_codecs({"host": codec}))
    loaded.load(*store.export())
    assert digest(loaded) == digest(store) == digest(twin)
    answers = []
    for each in (store, loaded, twin):
        with each.question(everything) as view:
            answers.append(ask(stack, view))
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
    store.apply(Plan(forget=(2,)))
    assert digest(loaded) == digest(twin)


@pytest.mark.parametrize("theirs", CODECS)
@pytest.mark.parametrize("ours", CODECS)
def test_a_snapshot_of_one_codec_is_decoded_and_encoded_by_another(theirs, ours):
    stack, store = watched(theirs)
    other = KVStore(stack.spec, rotary, **tier_codecs({"host": ours}))
    other.load(*store.export())
    for span in store.spans:
        if span.tier is not Tier.HOST:
            continue
        given = store.host_codec.decode(store._parked.blocks[span.id].parts, stack.spec.dtype)
        wanted = given if ours == theirs else other.host_codec.decode(other.host_codec.encode(*given), stack.spec.dtype)
        got = other.host_codec.decode(other._parked.blocks[span.id].parts, stack.spec.dtype)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    sizes = [
        encoded_bytes(other.spec, other.host_codec, span.num_tokens) for span in other.spans if span.tier is Tier.HOST
    ]
    assert other.num_bytes()["host_rows"] == sum(sizes)
    with pytest.raises(CapacityError, match="host budget"):
        KVStore(stack.spec, rotary, host_budget_bytes=sum(sizes) - 1, host_codec=other.host_codec).load(*store.export())


@pytest.mark.parametrize("told", ["int3", "int8:group=0", "/tmp/mine.py", "../bf16", 7, None, "int8:what=1"])
def test_a_snapshot_in_a_form_that_is_not_known_is_refused(told):
    """Above all, no file that a snapshot names is run."""
    stack, store = watched("int8")
    tensors, facts = store.export()
    fresh = KVStore(stack.spec, rotary)
    with pytest.raises(InputError):
        fresh.load(tensors, {**facts, "host_codec": told})
    assert not fresh.spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int8", "by tier"),
        ("host=int3", "no codec of that name"),
        ("cellar=int8", "no such tier"),
        ("host=int8,host=int4", "twice"),
        ("host=int8:group=x", "of type int"),
        ("host=int4:group=0", "at least one"),
        ("host=", "missing"),
    ],
)
def test_codecs_that_are_not_there_are_refused_in_one_line(text, words):
    with pytest.raises(InputError, match=words) as refused:
        tier_codecs(text)
    assert "\n" not in str(refused.value)


def test_codecs_are_read_from_text():
    def told(text: str) -> dict[str, str]:
        return {tier: registry.describe(codec) for tier, codec in tier_codecs(text).items()}

    assert told("device=bf16, host=int4:group=32") == {"device_codec": "bf16", "host_codec": "int4:group=32"}
    # What is parked stays as it lies, unless another form is named for it.
    assert told("device=int8") == {"device_codec": "int8", "host_codec": "int8"}
    assert tier_codecs("") == {}
