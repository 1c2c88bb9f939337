"""A question's words that refine what is before them: as a masked dense pass, plain and afterwards in packed ones."""

import pytest
import torch
from stack import KV_HEADS, LAYERS, Stack, ask, assert_same, everything, new_store, noise, place, watch
from test_rows import dense_over_rows

from onlooker.core.spans import Plan, Recall
from onlooker.kvstore import PackedAttention
from onlooker.kvstore.question import Held


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


def ask_refining(stack, view, lengths, layer, pick, trims_all=False):
    """As `ask`, with words that refine."""
    hidden, outputs = [noise(count, 77 + i) for i, count in enumerate(lengths)], []
    for number, tokens in enumerate(hidden):
        positions = torch.arange(len(tokens)).expand(stack.spec.position_axes, -1)
        if number == 0:
            segment = view.refining_segment(positions, len(tokens), layer=layer, pick=pick, trims_all=trims_all)
        else:
            segment = view.segment(positions, len(tokens))
        outputs.append(stack.extend(tokens, PackedAttention([(segment, len(tokens))])))
    return torch.cat(outputs)


@pytest.mark.parametrize("heads", [1, KV_HEADS])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_later_layers_see_what_was_picked(stack, store, layer, heads):
    rows = sum(span.num_tokens for span in store.spans)
    mask = torch.rand(heads, rows, generator=torch.Generator().manual_seed(layer)) < 0.4
    mask[:, : store.spans[0].num_tokens] = True  # text stays
    looks = []

    def pick(look):
        looks.append(look)
        return mask[0] if heads == 1 else mask

    with store.question(everything) as view:
        got = ask_refining(stack, view, (4, 1, 1), layer, pick)
        masks = [torch.ones(1, rows, dtype=torch.bool) if n <= layer else mask for n in range(LAYERS)]
        wanted, _ = dense_over_rows(stack, store, masks, (4, 1, 1))
        assert_same(got, wanted)
        assert [look.layer for look in looks] == [layer]
        assert view._whole is not None, "packed passes can take the answer"
        seen = [float(one.float().sum()) / len(one) for one in masks]
        assert view.context_tokens() == pytest.approx(sum(seen) / LAYERS)


def test_looks_are_those_of_the_dense_pass_though_rows_are_dropped_afterwards(stack, store):
    rows = sum(span.num_tokens for span in store.spans)
    mask = torch.rand(rows, generator=torch.Generator().manual_seed(1)) < 0.4
    mask[: store.spans[0].num_tokens] = True
    with store.question(everything) as view:
        ask_refining(stack, view, (4,), 1, lambda look: mask, trims_all=True)
        masks = [torch.ones(1, rows, dtype=torch.bool) if n <= 1 else mask[None] for n in range(LAYERS)]
        _, looks = dense_over_rows(stack, store, masks, (4,))
        wanted = [float(part.sum()) for part in looks.split([span.num_tokens for span in store.spans])]
        mass = view.attention_mass()
        assert [mass.get(span.id, 0.0) for span in store.spans] == pytest.approx(wanted, abs=1e-5)
        assert view.context_tokens() == pytest.approx(float(mask.sum())), "the answer sees as little in all layers"


def test_weights_of_a_look_are_the_attention(stack, store):
    found = []

    def pick(look):
        found.append(look.weights()[:, -1].mean(0))
        return torch.ones_like(look.vision)

    with store.question(everything) as view:
        ask_refining(stack, view, (4,), 0, pick)
        view.attention_mass()
        assert_same(found[0], view._looked[1][0])


def test_what_was_held_is_refined_with_the_rest(stack, store):
    held = [Held(20.0, 20.0, *place(4, stack.spec.position_axes, 5))]
    keep, answers = {}, []

    def pick(look):
        keep.setdefault("rows", len(look.block))
        return torch.ones_like(look.vision)

    for refines in (False, True):
        with store.question(everything, held=held) as view:
            segment = view.held_segment()
            stack.extend(noise(4, 500), PackedAttention([(segment, 4)]))
            answers.append(ask_refining(stack, view, (4, 1, 1), 1, pick) if refines else ask(stack, view, (4, 1, 1)))
            mass, seen = view.attention_mass(), view.recalled()
            answers.append(torch.tensor([mass[block] for block in sorted(mass)]))
            answers.append(torch.tensor([seen[block] for block in sorted(seen)]))
            answers.append(torch.tensor(view.context_tokens()))
    for one, other in zip(answers[:4], answers[4:], strict=True):
        assert_same(one.float(), other.float())
    assert keep["rows"] == 4 + sum(span.num_tokens for span in store.spans)


def test_layers_that_recalled_other_blocks_are_looked_at_themselves(stack, store):
    chosen = [[0, 2, 5], [0, 1, 3, 4], [0, 1, 3, 4]]
    looked = []

    def pick(look):
        looked.append((look.layer, look.num_blocks))
        return look.block == look.num_blocks - 1

    with store.question(lambda layer, spans, scores: Recall(tuple(chosen[layer])), scored=True) as view:
        words = noise(3, 1)
        positions = torch.arange(3).expand(stack.spec.position_axes, -1)
        stack.extend(words, PackedAttention([(view.retrieval(positions, 3), 3)]))
        ask_refining(stack, view, (4, 1), 0, pick)
        assert looked == [(0, 3), (1, 4)]
        sizes = {span.id: span.num_tokens for span in store.spans}
        assert view.context_tokens() == pytest.approx(
            (sum(sizes[b] for b in chosen[0]) + 2 * (sizes[0] + sizes[4])) / 3
        )
