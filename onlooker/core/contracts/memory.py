"""What a memory policy fills in."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from onlooker.core.contracts.method import Method
from onlooker.core.spans import Hint, Plan, Recall, Scoring, Span, Tier
from onlooker.core.state import StreamState
from onlooker.core.unread import Unread


class MemoryPolicy(Method):
    """Decides about blocks of keys and values (`plan`, `recall`); the store carries the decision out, and the policy
    never touches a key or value. Or, with `holds_tokens`, holds what was seen itself (`absorb`, `reread`)."""

    scores_layers: ClassVar[bool] = False
    """True when `recall` wants the question's score of every block, layer by layer (a first pass over the question)."""
    layered: ClassVar[bool] = False
    """True when layers see different blocks though no scores are wanted: `recall_layer` is asked for each of them."""
    indexes: ClassVar[bool] = False
    """True when `index` wants to see the keys of every block that was stored."""
    holds_tokens: ClassVar[bool] = False
    """True when the policy keeps tokens and notes in its own state, merged or thinned as it likes, and says at a
    question what is read. Nothing is read while watching then, and there are no blocks to decide about."""
    takes_pictures: ClassVar[bool] = False
    """True when it holds tokens and never looks inside them, so that it serves models which take pictures only."""

    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """After a chunk was stored: what to park and what to forget. `spans` are all blocks, in stream order.

        Must not take time that grows with the number of blocks already parked. The default keeps everything.
        """
        return Plan()

    def pick(self, keys: Tensor, values: Tensor, sizes: Sequence[int], state: StreamState) -> Tensor:
        """Of the blocks that a plan melts, the rows that stay: int64 `[layers, kv_heads, kept]`, ascending along rows.

        `keys` (rotated to where each was written) and `values` are `[layers, kv_heads, rows, head_dim]`, where they
        lie: they are not written into and not kept. `sizes` are the rows of each block; neighbours that were melted
        before are one entry. `state` is updated.
        """
        raise NotImplementedError(f"{type(self).__name__} melts blocks and does not say which rows stay")

    def index(self, block: int, keys: Tensor, state: StreamState) -> None:
        """Take note of a block that was stored just now, if `indexes`: its raw keys `[layers, kv_heads, tokens,
        head_dim]`, on the device, which are not written into and not kept. Called before `plan`. `state` is updated."""
        raise NotImplementedError(f"{type(self).__name__} indexes keys and does not say how")

    @property
    def num_queries(self) -> int:
        """Of how many of a new block's last tokens `heed` wants the queries; 0: it is not asked."""
        return 0

    def heed(self, block: int, queries: Tensor, state: StreamState) -> None:
        """Take note of how a block that was stored just now looked at what was before it, if `num_queries`: the queries
        of its last tokens, rotated to where they were written, `[layers, query_heads, tokens, head_dim]`, on the
        device, oldest first; fewer tokens if it has fewer. With the keys that `pick` is given they make the model's
        logits. Not written into; not kept but in a copy. Called before `plan`. `state` is updated."""
        raise NotImplementedError(f"{type(self).__name__} wants queries and does not say what for")

    def absorb(self, new: Unread, state: StreamState) -> None:
        """Take in the newest frame, or a note, if `holds_tokens`. `state` is updated, and must stay bounded; the
        tensors of `new` are nobody else's, and are never written into."""
        raise NotImplementedError(f"{type(self).__name__} holds tokens and does not say how")

    def reread(self, question: Tensor, state: StreamState) -> Sequence[Unread]:
        """What a question reads, if `holds_tokens`: a block each, in the order of their `at_s`. `question` is the bare
        question, `[tokens, hidden_dim]` (`[0, 0]` of models that take pictures). Must not change `state`."""
        raise NotImplementedError(f"{type(self).__name__} holds tokens and does not say what is read")

    def hint(self, state: StreamState) -> Hint | None:
        """What it made of the newest frame that it took in, for the gate that looks at the next; None: it does not
        say. Must not change `state`, nor take time that grows with the stream."""
        return None

    def scoring(self) -> Scoring:
        """How blocks are scored, if `scores_layers`."""
        return "mean"

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """What a question may see, in one layer if `scores_layers` (then `scores` is float32 `[spans]`), else in all.

        The default is everything on the device. Must not change `state`.
        """
        return Recall(tuple(span.id for span in spans if span.tier is Tier.DEVICE))

    def recall_layer(self, layer: int, num_layers: int, spans: Sequence[Span], state: StreamState) -> Recall:
        """What a question may see in one of so many layers, if `layered`. Must not change `state`."""
        raise NotImplementedError(f"{type(self).__name__} is layered and does not say what a layer sees")

    def recall_found(self, layer: int, spans: Sequence[Span], found: Sequence[Tensor], state: StreamState) -> Recall:
        """What a question may see, if `scoring` is `heads`: while it looks, in this layer; once it has looked (`layer`
        is then the number of layers), in all of them. `found` are the scores of the layers so far, float32
        `[query_heads, spans]` each. Must not change `state`."""
        raise NotImplementedError(f"{type(self).__name__} does not choose by heads")

    def recall_rows(self, layer: int, spans: Sequence[Span], queries: Tensor, state: StreamState) -> Recall:
        """What a question may see in one layer, row by row, if `scoring` is `queries`: the layer's raw queries of the
        whole prompt, `[query_heads, tokens, head_dim]`, on the device. Must not change `state`."""
        raise NotImplementedError(f"{type(self).__name__} recalls whole blocks")
