"""Which attention edges carry an answer, layer by layer: cut them and see what the answer loses (Map the Flow).

Kim et al., "Map the Flow: Revealing Hidden Pathways of Information in VideoLLMs", ICLR 2026 (arXiv 2510.13251). In
dense attention over frames, question and last token, the edges between two groups are cut in a window of layers around
each layer; what counts is how much the probability of a right answer drops. Then only the layers that matter are left,
and a control cuts as many at random. Changed: the control draws its layers per edge class, where theirs cuts any edges
of the causal triangle, the question's own included, which is a weaker opponent; an answer is all of its tokens.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from onlooker.core.contracts import VideoModel
from onlooker.core.frame import Frame
from onlooker.engine import Engine
from onlooker.engine.reading import unread_reading
from onlooker.kvstore.blocks import Block
from onlooker.kvstore.placing import lay_out
from onlooker.kvstore.rotation import moved, rotate

PROMPT, VIDEO, QUESTION, LAST = range(4)
EDGES = ("cross_frame", "video_question", "question_last", "video_last")
Cut = Mapping[str, frozenset[int]]
"""Layers in which edges are cut, by their name."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A question behind a clip, as one dense sequence, with the answer that the model gave behind it."""

    embeddings: Tensor
    """`[tokens, hidden_dim]`."""
    positions: Tensor
    """Int64 `[axes, tokens]`."""
    group: Tensor
    """What each token is: prompt, video, question, or last (of the question, and the answer), int64 `[tokens]`."""
    frame: Tensor
    """Which block of video it belongs to, int64 `[tokens]`."""
    extras: Mapping[str, Tensor] | None
    answer: tuple[int, ...] = ()
    """Token ids whose probability is asked for; all but the last are read too."""


class _CutAttention:
    """Dense causal attention with some edges missing (`core.contracts.Attention`)."""

    def __init__(self, model: VideoModel, sample: Sample, cut: Cut) -> None:
        self._angles = model.rotary(sample.positions)
        count = len(sample.group)
        causal = torch.ones(count, count, dtype=torch.bool, device=sample.group.device).tril()
        self._masks: dict[frozenset[str], Tensor] = {}
        self._cut = [frozenset(e for e in cut if layer in cut[e]) for layer in range(model.spec.num_layers)]
        for edges in set(self._cut):
            mask = causal.clone()
            for edge in edges:
                mask &= ~edges_of(sample, edge)
            self._masks[edges] = mask

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """See `core.contracts.Attention`."""
        groups = len(queries) // len(keys)
        queries, keys = rotate(queries, *self._angles), rotate(keys, *self._angles)
        keys, values = (part.repeat_interleave(groups, 0) for part in (keys, values))
        mask = self._masks[self._cut[layer]]
        seen = scaled_dot_product_attention(queries[None], keys[None], values[None], attn_mask=mask, scale=scale)
        return seen[0].transpose(0, 1)


def edges_of(sample: Sample, edge: str) -> Tensor:
    """Which query-key pairs an edge class is, bool `[tokens, tokens]`."""
    group, frame = sample.group, sample.frame
    if edge == "cross_frame":
        video = group == VIDEO
        return video[:, None] & video & (frame[:, None] != frame)
    to, of = {"video_question": (QUESTION, VIDEO), "question_last": (LAST, QUESTION), "video_last": (LAST, VIDEO)}[edge]
    return (group == to)[:, None] & (group == of)


@torch.no_grad()
def sample_of(engine: Engine, frames: Iterable[Frame], question: str) -> Sample:
    """The dense sequence of a clip and a question, as the engine's model reads them. The engine has to hold all of the
    clip's tokens (`last_frames`)."""
    model = engine.model
    with engine.open() as session:
        for frame in frames:
            session.push(frame)
        held = session.memory.reread(torch.empty(0, model.spec.hidden_dim), session.states["memory"])
        video = [*(unread_reading(model, one, engine.layout) for one in held), *session.held()]
    prefix, words = model.prefix_ids(), model.question_ids(question)
    closing = model.closing_embeddings()
    tail = torch.cat([closing, model.embed_text(words)])
    parts = [model.embed_text(prefix), *(one.embeddings for one in video), tail]
    places = [model.place_text(len(prefix)), *((v.held.positions, v.held.extent) for v in video)]
    places.append(model.place_text(len(tail)))
    clocks = [None, *(one.held.clock for one in video), None]
    blocks = [Block(n, len(e), p[1], p[0], c) for n, (e, p, c) in enumerate(zip(parts, places, clocks, strict=True))]
    offsets, _ = lay_out(blocks, model.spec.position_axes)
    positions = torch.cat([moved(b.positions, at) for b, at in zip(blocks, offsets, strict=True)], dim=1)
    kinds = [PROMPT, *[VIDEO] * len(video), QUESTION]
    group = torch.cat([torch.full((len(e),), k) for e, k in zip(parts, kinds, strict=True)]).to(positions.device)
    group[-1] = LAST
    frame = torch.cat([torch.full((len(e),), n) for n, e in enumerate(parts)]).to(positions.device)
    beside: list[Mapping[str, Tensor]] = [{}, *(one.extras or {} for one in video), {}]
    names = {name: rows for one in beside for name, rows in one.items()}
    extras = {
        name: torch.cat([_rows(one, name, like, len(part)) for one, part in zip(beside, parts, strict=True)])
        for name, like in names.items()
    }
    return Sample(torch.cat(parts), positions, group, frame, extras or None)


def answered(model: VideoModel, sample: Sample, ids: Sequence[int]) -> Sample:
    """The same, with an answer behind it."""
    read = list(ids[:-1])
    if not read:
        return replace(sample, answer=tuple(ids))
    start = int(sample.positions.max()) + 1
    more = torch.arange(start, start + len(read), device=sample.positions.device).expand(len(sample.positions), -1)
    extras = {n: torch.cat([r, r.new_zeros(len(read), *r.shape[1:])]) for n, r in (sample.extras or {}).items()}
    return Sample(
        torch.cat([sample.embeddings, model.embed_text(read)]),
        torch.cat([sample.positions, more], dim=1),
        torch.cat([sample.group, sample.group.new_full((len(read),), LAST)]),
        torch.cat([sample.frame, sample.frame[-1:].expand(len(read))]),
        extras or None,
        tuple(ids),
    )


@torch.no_grad()
def states_of(model: VideoModel, sample: Sample, cut: Cut) -> Tensor:
    """The decoder's states that `scores_of` scores, `[n, hidden_dim]`."""
    hidden = model.extend(sample.embeddings, _CutAttention(model, sample, cut), sample.extras)
    return hidden[-max(1, len(sample.answer)) :]


@torch.no_grad()
def scores_of(model: VideoModel, sample: Sample, cut: Cut) -> Tensor:
    """Scores of what comes behind the question, and behind each token of the answer that is read, `[n, vocabulary]`."""
    return model.logits(states_of(model, sample, cut))


def probability(model: VideoModel, sample: Sample, cut: Cut) -> tuple[float, bool]:
    """Of the answer when some edges are cut, and whether it would still be the one given."""
    scores = scores_of(model, sample, cut)
    wanted = torch.tensor(sample.answer, device=scores.device)
    chosen = scores.float().log_softmax(-1).gather(1, wanted[:, None]).sum()
    return float(chosen.exp()), bool((scores.argmax(-1) == wanted).all())


def window(layer: int, width: int, num_layers: int) -> frozenset[int]:
    """`width` layers around one."""
    first = layer - (width - 1) // 2
    return frozenset(n for n in range(first, first + width) if 0 <= n < num_layers)


def drops(
    model: VideoModel, samples: Sequence[Sample], edges: Sequence[str], width: int, on_run: Callable[[], None]
) -> dict[str, list[float]]:
    """By edge class, for each layer: the share of the answer's probability that is lost, mean over samples."""
    layers, whole = model.spec.num_layers, [probability(model, sample, {})[0] for sample in samples]
    found: dict[str, list[float]] = {}
    for edge in edges:
        found[edge] = []
        for layer in range(layers):
            cut = {edge: window(layer, width, layers)}
            lost = [1 - probability(model, one, cut)[0] / full for one, full in zip(samples, whole, strict=True)]
            found[edge].append(sum(lost) / len(lost))
            on_run()
    return found


def chosen_cut(found: Mapping[str, Sequence[float]], tolerance: float) -> Cut:
    """Of each edge class the layers whose cut costs no more than this share of the probability."""
    return {edge: frozenset(n for n, lost in enumerate(row) if lost <= tolerance) for edge, row in found.items()}


def random_cut(cut: Cut, num_layers: int, seed: int) -> Cut:
    """As many layers of each edge class, drawn at random."""
    draw = random.Random(seed)
    return {edge: frozenset(draw.sample(range(num_layers), len(layers))) for edge, layers in cut.items()}


def still_right(model: VideoModel, samples: Sequence[Sample], cut: Cut) -> float:
    """Share of the answers that are the same under a cut."""
    return sum(probability(model, sample, cut)[1] for sample in samples) / len(samples)


def greedy(model: VideoModel, sample: Sample, most: int = 12) -> list[int]:
    """The model's own answer by dense attention: token ids, without the end."""
    ids: list[int] = []
    while len(ids) < most:
        token = int(scores_of(model, answered(model, sample, [*ids, 0]), {})[-1].argmax())
        if token in model.end_ids:
            break
        ids.append(token)
    return ids


def _rows(beside: Mapping[str, Tensor], name: str, like: Tensor, count: int) -> Tensor:
    return beside.get(name, like.new_zeros(count, *like.shape[1:]))
