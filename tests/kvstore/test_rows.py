"""Recall of single rows: what each layer and head sees is what was picked, in place, plain and packed, and cited."""

import pytest
import torch
from stack import HEAD_DIM, KV_HEADS, LAYERS, QUERY_HEADS, SCALE, Stack, ask, assert_same, new_store, noise, turn, watch

from onlooker.core.errors import InputError
from onlooker.core.spans import Plan, Recall
from onlooker.kvstore.placing import lay_out

GROUPS = QUERY_HEADS // KV_HEADS


def everything(spans):
    return tuple(span.id for span in spans)


@pytest.fixture(params=[1, 3])
def stack(request):
    return Stack(request.param)


@pytest.fixture
def store(stack):
    store = new_store(stack)
    for number in range(9):
        watch(stack, store, 3 + number % 3, number)
    store.apply(Plan(park=(1, 2, 3)))
    return store


def picking(store, heads: int, seed: int = 0, share: float = 0.4):
    """A mask for every layer, at random; of the third block no head sees any row."""
    spans = store.spans
    chosen, masks = torch.Generator().manual_seed(seed), []
    for _ in range(LAYERS):
        parts = [torch.rand(heads, span.num_tokens, generator=chosen) < share for span in spans]
        parts[3] = torch.zeros_like(parts[3])
        masks.append(torch.cat(parts, dim=1))
    return masks


def dense_over_rows(stack, store, masks, lengths, seed=77):
    """All tokens at once, with own arithmetic: unseen rows are masked; also each layer's looks of the last token."""
    from stack import raw

    entries = [store._entries[span.id] for span in store.spans]
    offsets, reach = lay_out([entry.block for entry in entries], stack.spec.position_axes)
    places = torch.cat(
        [e.block.positions + torch.tensor(o)[:, None] for e, o in zip(entries, offsets, strict=True)], dim=1
    )
    old = [torch.cat([raw(store, e.span.id)[which] for e in entries], dim=2) for which in (0, 1)]
    hidden = torch.cat([noise(count, seed + i) for i, count in enumerate(lengths)])
    total = sum(lengths)
    here = torch.arange(total).expand(stack.spec.position_axes, -1) + torch.tensor(reach)[:, None]
    looks = []
    for layer in range(LAYERS):
        queries, keys, values = stack.project(layer, hidden)
        keys = torch.cat((turn(old[0][layer], places), turn(keys, here)), dim=1)
        values = torch.cat((old[1][layer], values), dim=1)
        keys, values = keys.repeat_interleave(GROUPS, 0), values.repeat_interleave(GROUPS, 0)
        logits = turn(queries, here) @ keys.transpose(1, 2) * SCALE
        mask = torch.ones(logits.shape[1:], dtype=torch.bool).tril(logits.shape[2] - total).repeat(QUERY_HEADS, 1, 1)
        picked = masks[layer].expand(KV_HEADS, -1).repeat_interleave(GROUPS, 0)
        mask[:, :, : picked.shape[1]] &= picked[:, None]
        weights = logits.masked_fill(~mask, float("-inf")).softmax(-1)
        looks.append(weights[:, -1, : picked.shape[1]].mean(0))
        hidden = hidden + (weights @ values).transpose(0, 1).reshape(total, -1) @ stack.out[layer].T
    return hidden, torch.stack(looks).mean(0)


@pytest.mark.parametrize("heads", [1, KV_HEADS])
def test_picked_rows_equal_a_masked_dense_pass(stack, store, heads):
    masks = picking(store, heads)

    def choose(layer, spans, queries):
        assert queries.shape[0] == QUERY_HEADS and queries.shape[2] == HEAD_DIM
        return Recall(everything(spans), masks[layer])

    with store.question(choose, scored=True, scoring="queries") as view:
        got = ask(stack, view, (4, 1, 1), scored=True)
        wanted, _ = dense_over_rows(stack, store, masks, (4, 1, 1))
        assert_same(got, wanted)
        assert view._whole is not None, "packed passes can take it"
        assert view.context_tokens() == pytest.approx(sum(float(m.float().sum()) / heads for m in masks) / LAYERS)
        assert view.recalled().get(store.spans[3].id, 0) == 0


@pytest.mark.parametrize("heads", [1, KV_HEADS])
def test_looks_at_picked_rows_are_those_of_the_dense_pass(stack, store, heads):
    masks = picking(store, heads, seed=3)
    choose = lambda layer, spans, queries: Recall(everything(spans), masks[layer])  # noqa: E731 - as in the others
    with store.question(choose, scored=True, scoring="queries") as view:
        ask(stack, view, (4,), scored=True)
        _, looks = dense_over_rows(stack, store, masks, (4,))
        wanted = [float(part.sum()) for part in looks.split([span.num_tokens for span in store.spans])]
        mass = view.attention_mass()
        assert [mass.get(span.id, 0.0) for span in store.spans] == pytest.approx(wanted, abs=1e-5)


def test_rows_of_other_blocks_are_refused(stack, store):
    choose = lambda layer, spans, queries: Recall(everything(spans), torch.ones(1, 3, dtype=torch.bool))  # noqa: E731
    with (
        store.question(choose, scored=True, scoring="queries") as view,
        pytest.raises(InputError, match="other blocks"),
    ):
        ask(stack, view, (4,), scored=True)
