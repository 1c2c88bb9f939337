"""Recall of rows by clusters: against a plain derivation, and in an engine against full memory."""

import pytest
import torch
from moving_pictures import make_frames
from stock_models import FAMILIES
from tiny import make_family_folder

from onlooker.core.spans import Span
from onlooker.engine import Engine
from onlooker.memory._clusters import BITS, Clusters, directions
from onlooker.memory.resv import ReSV
from onlooker.models import load

QUESTION = "which shape left first ?"


def blocks_of_keys(seed: int, layers: int = 2, heads: int = 2, dim: int = 8):
    """Blocks of different size whose rows are of a few kinds."""
    chosen = torch.Generator().manual_seed(seed)
    kinds = torch.randn(7, dim, generator=chosen)
    for number in range(9):
        rows = 3 + number % 4
        which = torch.randint(0, 7, (layers, heads, rows), generator=chosen)
        yield number + 1, kinds[which] + 0.25 * torch.randn(layers, heads, rows, dim, generator=chosen)


def sequentially(blocks, differ: int, layer: int, head: int):
    """Row by row, as the paper tells it: (signatures, member keys, cluster of every row) of one layer and head."""
    signatures, members, cluster = [], [], []
    for _, keys in blocks:
        for key in keys[layer, head]:
            bits = (key @ directions(len(key)) >= 0).int()
            gaps = [int((bits != own).sum()) for own in signatures]
            if gaps and min(gaps) < differ:
                number = gaps.index(min(gaps))
                members[number].append(key)
            else:
                number = len(signatures)
                signatures.append(bits)
                members.append([key])
            cluster.append(number)
    return signatures, members, cluster


@pytest.mark.parametrize("differ", [1, 7, BITS])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_those_of_the_rows_one_by_one(seed, differ):
    blocks, clusters = list(blocks_of_keys(seed)), Clusters()
    for number, keys in blocks:
        clusters.add(number, keys, differ)
    for layer in range(2):
        for head in range(2):
            signatures, members, cluster = sequentially(blocks, differ, layer, head)
            assert clusters.cluster[layer, head].tolist() == cluster
            count = len(signatures)
            assert clusters.sizes[layer, head].tolist()[:count] == [len(rows) for rows in members]
            assert not clusters.sizes[layer, head, count:].any()
            sums = torch.stack([torch.stack(rows).sum(0) for rows in members])
            torch.testing.assert_close(clusters.sums[layer, head, :count], sums)
            wanted = torch.stack(signatures) * 2 - 1
            assert clusters.signatures[layer, head, :count].tolist() == wanted.tolist()


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_each_word_stops_at_its_share(share):
    blocks, clusters, layer = list(blocks_of_keys(5)), Clusters(), 1
    for number, keys in blocks:
        clusters.add(number, keys, 7)
    queries = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1))
    rows = clusters.rows_of(3, 7)  # a question about a part of the stream
    got = clusters.reached(layer, queries, rows, share)
    for head in range(2):
        _, members, cluster = sequentially(blocks, 7, layer, head)
        cluster, wanted = cluster[rows], set()
        for query in queries[2 * head : 2 * head + 2].flatten(0, 1):
            score = {n: float(query @ torch.stack(members[n]).mean(0)) * 8**-0.5 for n in set(cluster)}
            mass = {n: torch.tensor(score[n]).exp().item() * cluster.count(n) for n in score}
            reached = 0.0
            for n in sorted(score, key=lambda n: -score[n]):
                if reached >= share * sum(mass.values()):
                    break
                wanted.add(n)
                reached += mass[n]
        assert got[head].tolist() == [n in wanted for n in cluster]


def test_a_question_sees_the_newest_blocks_whole():
    memory, blocks = ReSV(share=0.05, recent=2), list(blocks_of_keys(2))
    state, spans = memory.new_state(), [Span(0, "prefix", 4, 0.0, 0.0)]
    for number, keys in blocks:
        memory.index(number, keys, state)
        spans.append(Span(number, "vision", keys.shape[2], float(number), float(number)))
    recall = memory.recall_rows(0, spans, torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1)), state)
    newest = sum(span.num_tokens for span in spans[-2:])
    assert recall.blocks == tuple(span.id for span in spans) and recall.rows is not None
    assert bool(recall.rows[:, :4].all()) and bool(recall.rows[:, -newest:].all()) and not bool(recall.rows.all())


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return load(make_family_folder(request.param, tmp_path_factory.mktemp(request.param)), device="cpu", pairs=False)


def answer(model, memory, passes="plain", **times):
    session = Engine(model, encoder="full", compressor="uniform:keep=6", memory=memory, passes=passes).open()
    for frame in make_frames(12):
        session.push(frame)
    return session.ask(QUESTION, max_new_tokens=4, **times)


@pytest.mark.proves("v_rex", 1)
@pytest.mark.parametrize(
    ("settings", "same_as"),
    [("resv:share=1", "full"), ("resv:share=1,window_tokens=20", "rekv:topk=100,window_tokens=20")],
    ids=["full", "parked"],
)
def test_to_stop_at_everything_is_full_memory(model, settings, same_as):
    wanted, got = answer(model, same_as), answer(model, settings)
    assert (got.text, got.usage) == (wanted.text, wanted.usage)
    for one, other in zip(got.citations, wanted.citations, strict=True):
        assert (one.start_s, one.end_s) == (other.start_s, other.end_s)
        assert (one.share, one.recalled) == pytest.approx((other.share, other.recalled), abs=1e-4)


@pytest.mark.parametrize("times", [{}, {"at": 7.0, "since": 2.0}])
def test_packed_equals_plain_with_rows_of_every_head(model, times):
    settings = "resv:share=0.4,differ=2,recent=1,window_tokens=20"
    plain, packed = (answer(model, settings, passes, **times) for passes in ("plain", "packed"))
    assert (packed.text, packed.usage) == (plain.text, plain.usage)
    assert plain.usage.context_tokens < answer(model, "full", **times).usage.context_tokens
    for one, other in zip(packed.citations, plain.citations, strict=True):
        assert (one.start_s, one.end_s) == (other.start_s, other.end_s)
        assert (one.share, one.recalled) == pytest.approx((other.share, other.recalled), abs=1e-4)


def test_a_saved_session_recalls_the_same_rows(model):
    settings = {"encoder": "full", "compressor": "uniform:keep=6", "memory": "resv:share=0.4,window_tokens=20"}
    engine = Engine(model, **settings)
    session = engine.open()
    for frame in make_frames(8):
        session.push(frame)
    saved, twin = session.export(), session.fork()
    loaded = engine.load(saved)
    for frame in make_frames(12)[8:]:
        for one in (session, twin, loaded):
            one.push(frame)
    told = [one.ask(QUESTION, max_new_tokens=4) for one in (session, twin, loaded)]
    assert len({(one.text, one.usage, one.citations) for one in told}) == 1
    assert session.stats().memory_bytes["memory_state"] > 0
