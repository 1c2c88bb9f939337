"""The plug-in interfaces on one page: read this first.

A method is a frozen dataclass of settings; what it remembers about a stream is a `StreamState` that `new_state` makes
and the session owns. A method never learns which model it serves; it declares what it `needs`, a model what it
`offers`, and the two are compared when an engine is built.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from onlooker.core.errors import ModelError
from onlooker.core.spans import Layout, Plan, Recall, Scoring, Span
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens

# ---------------------------------------------------------------------------------------------- what a model offers


class VisionLayer(Protocol):
    """One pre-norm transformer layer of a vision tower, in pieces, so that a method can run it on some tokens only.

    Every piece is row-wise except `attend`. A plain layer is
    `y = x + out(attend(q(h), k(h), v(h)))` with `h = norm(x)`, then `y + mlp(y)`.
    """

    def norm(self, hidden: Tensor) -> Tensor:
        """The norm before attention, `[streams, tokens, dim]`."""
        ...

    def queries(self, normed: Tensor) -> Tensor:
        """Query projection, heads not split, `[streams, tokens, dim]`."""
        ...

    def keys(self, normed: Tensor) -> Tensor:
        """Key projection before any rotation, `[streams, tokens, dim]`."""
        ...

    def values(self, normed: Tensor) -> Tensor:
        """Value projection, `[streams, tokens, dim]`."""
        ...

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, index: Tensor | None = None) -> Tensor:
        """Attention output before the output projection, `[streams, queries, dim]`.

        `index` (int64 `[streams, queries]`) says which tokens the queries belong to; None means all, in order.
        Rotation, windows and heads are the layer's own business.
        """
        ...

    def out(self, attended: Tensor) -> Tensor:
        """Output projection of the attention branch (with layer scale, if the family has one)."""
        ...

    def mlp(self, hidden: Tensor) -> Tensor:
        """The MLP branch with its norm, without the residual."""
        ...


class Norm(Protocol):
    """A norm of rows, `[rows, dim]` to `[rows, dim]`."""

    @property
    def weight(self) -> Tensor:
        """`[dim]`."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """`[dim]`; None: rows are divided by their root mean square only, nothing is subtracted or added."""
        ...

    @property
    def eps(self) -> float:
        """Added to the mean square."""
        ...

    def __call__(self, rows: Tensor, /) -> Tensor: ...


class Asking(Protocol):
    """Which tokens of some streams the queries of a packed layer belong to, the same number in each stream."""

    index: Tensor
    """Their numbers in their frame, int64 `[streams, queries]`, ascending."""

    @property
    def rows(self) -> Tensor:
        """The other way round: int32 `[streams * tokens]`, the row of every token, counted from `first`; below 0: it
        does not ask."""
        ...

    @property
    def first(self) -> int:
        """The number of the first stream's first query in `rows`."""
        ...


class PackedLayer(Protocol):
    """A vision layer whose weights are laid out for fixed-shape steps over rows of many streams; for inference only.

    Rows are `[rows, dim]`, whichever streams they belong to. The same layer as the `VisionLayer` it was made of.
    """

    norm: Norm
    mlp_norm: Norm
    angles: tuple[Tensor, Tensor] | None
    """Cosine and sine by which queries and keys are turned before attention (`onlooker.kernels.rotary`), float32
    `[tokens, head_dim / 2]` each; None: positions are in the embedding already."""
    query_value: tuple[Tensor, Tensor]
    """Weight `[2 * dim, dim]` and bias of the query and the value projection, one below the other."""
    value_key: tuple[Tensor, Tensor]
    """Weight `[2 * dim, dim]` and bias of the value and the key projection."""
    heads: tuple[int, float] | None
    """Number and scale of heads in which every token attends to all of its frame, so that `head_attention` may read
    values where they are; None: attention is of another kind."""
    windows: Callable[..., Tensor] | None
    """Attention of chosen tokens in a layer whose tokens attend within windows, given queries, keys, values where they
    are (`kernels.rows.ValueRows`), which tokens are `Asking`, and the kernels; None: the layer has no windows."""

    def keys(self, normed: Tensor) -> Tensor:
        """Key projection of rows."""
        ...

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, way: str) -> Tensor:
        """Attention before the output projection, `[streams, queries, dim]`, computed in one of the ways that
        `onlooker.kernels.head_attention` knows. `keys` and `values` are `[streams, tokens, dim]`, and so are `queries`
        in a layer with windows."""
        ...

    def out(self, attended: Tensor) -> Tensor:
        """Output projection of rows."""
        ...

    def feed(self, normed: Tensor) -> Tensor:
        """The MLP on rows, without its norm."""
        ...


@dataclass(frozen=True)
class VisionTower:
    """The layers of a vision tower at one input geometry."""

    layers: Sequence[VisionLayer]
    num_tokens: int
    """Tokens of one frame inside the tower (CLS included)."""
    dim: int
    group: int = 1
    """Neighbouring tokens that are later merged into one and therefore must be chosen together."""
    pinned: int = 0
    """Leading tokens that describe the whole frame (CLS)."""
    tap_layers: frozenset[int] = frozenset()
    """Layers whose output the model also needs (DeepStack)."""
    mlp_dim: int | None = None
    """Width inside the MLP, for counting FLOP; None means four times `dim`. A gated MLP has three matrices instead of
    two, so it counts as one and a half times its width."""
    mean_attended: float | None = None
    """Keys a query attends to, mean over layers, for counting FLOP; None means all tokens (windows see fewer)."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of patches in the frame, for drawing."""
    raster: Tensor | None = None
    """Raster index of every token after the pinned ones, int64; None when they are in raster order already."""
    pack: Callable[[], Sequence[PackedLayer]] | None = None
    """Makes the layers' packed form, which copies some weights; None when the family has none yet."""


@dataclass(frozen=True)
class Encoded:
    """What came out of a vision tower for one frame of each stream."""

    hidden: Tensor
    """After the last layer, `[streams, tokens, dim]`."""
    taps: Mapping[int, Tensor] = field(default_factory=dict)
    """Output of every tapped layer, each `[streams, tokens, dim]`."""
    recomputed: Tensor | None = None
    """Share of each token's work in the layers that was done anew, float32 `[streams, tokens]`; None means all."""
    refreshed: tuple[bool, ...] = ()
    """Per stream: was the whole frame computed densely?"""


@dataclass(frozen=True)
class ModelSpec:
    """The sizes of a model that its surroundings need to know."""

    name: str
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int
    dtype: torch.dtype
    device: torch.device
    max_positions: int
    """Positions the language model was made for."""
    position_axes: int = 1
    """1 for plain rotary positions, 3 for M-RoPE."""
    layout: Layout = "pack"
    """The position layout that suits this model."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in all layers."""
        size = self.dtype.itemsize
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * size


class Attention(Protocol):
    """What a model calls inside every language layer. Queries and keys come un-rotated."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Attention output `[tokens, query_heads, head_dim]`.

        `queries` is `[query_heads, tokens, head_dim]`, `keys` and `values` are `[kv_heads, tokens, head_dim]`: the
        packed tokens of all streams of this step.
        """
        ...


@dataclass(frozen=True)
class TokenChoice:
    """How the next token of one answer is chosen."""

    sampled: bool = False
    """Drawn from the scores; otherwise the highest wins."""
    adjust: Callable[[Sequence[int], Sequence[int], Tensor], Tensor] | None = None
    """Token ids that were read, those that were said since, and scores float32 `[vocabulary]` to the scores that count;
    None: as they are."""


class VideoModel(ABC):
    """One model family behind one face. It holds weights and no stream state."""

    spec: ModelSpec
    offers: frozenset[str] = frozenset()
    language_extras: frozenset[str] = frozenset()
    """Names of token extras that enter the language layers (DeepStack rows)."""
    patch_frames: int = 1
    """Frames that go through the tower together, as one patch in time. With more than one, a stream's newest frames are
    held back until there are so many of one size."""
    patch_s: float = float("inf")
    """Frames further apart, in seconds, are no patch: each is one by itself, shown `patch_frames` times."""

    # seeing
    @abstractmethod
    def preprocess(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """Pixels ready for the tower, one `[channels, rows, cols]` per uint8 `[rows, cols, 3]` image, on the device."""

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The picture at the size the tower wants, uint8 `[rows, cols, 3]`.

        `preprocess` makes the same pixels of it with less work, so that this changes nothing but time: it may run in
        any thread, ahead of the step that takes the frame.
        """
        return image

    @abstractmethod
    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Patch and position embedding: `[streams, channels, rows, cols]` to `[streams, tokens, dim]`.

        Channels are those of all frames of a patch, one frame after the other; of a single frame only, it stands for
        them all.
        """

    @abstractmethod
    def tower(self, pixels_shape: tuple[int, ...]) -> VisionTower:
        """The tower for pixels of shape `[channels, rows, cols]`. Frames of equal shape run in one batch."""

    @abstractmethod
    def project(
        self, encoded: Encoded, pixels_shape: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, int], dict[str, Tensor]]:
        """Tower output to language-model tokens: features `[streams, tokens, dim]`, their grid, and extras by name
        (each `[streams, tokens, ...]`)."""

    # reading
    @abstractmethod
    def prefix_ids(self) -> list[int]:
        """Token ids before the first frame (system prompt and the opening of the user's turn)."""

    @abstractmethod
    def frame_ids(self, time_s: float) -> list[int]:
        """Token ids before a frame's visual tokens: its time as text where the model was trained with it, else none.

        Of a patch of several frames, `time_s` is the mean time.
        """

    def frame_closing_ids(self) -> list[int]:
        """Token ids after a frame's visual tokens, for models that put every frame between marks; none by default."""
        return []

    @abstractmethod
    def question_ids(self, question: str) -> list[int]:
        """Token ids after the frames: the question and the opening of the answer."""

    @abstractmethod
    def retrieval_ids(self, question: str) -> list[int]:
        """Token ids of the bare question, used to look for the memories that matter."""

    def note_ids(self, text: str) -> list[int]:
        """Token ids of a text that is written into the memory between frames (what was said, heard or thought)."""
        return self.retrieval_ids(f"{text}\n")

    @abstractmethod
    def closing_embeddings(self) -> Tensor:
        """Embeddings between the last frame and the question, `[tokens, hidden_dim]` (may be empty)."""

    @abstractmethod
    def embed_text(self, ids: Sequence[int]) -> Tensor:
        """`[tokens, hidden_dim]`."""

    @abstractmethod
    def decode_text(self, ids: Sequence[int]) -> str:
        """The text of generated ids, special tokens left out."""

    @property
    @abstractmethod
    def end_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""

    @abstractmethod
    def token_choice(self, wishes: Mapping[str, float], max_new_tokens: int) -> TokenChoice:
        """How an answer's tokens are chosen: by `wishes` (`temperature`, of which 0 is greedy, `top_p`, `top_k`,
        `repetition_penalty`) where there are any, and by the checkpoint's own generation settings in all else."""

    # placing
    @abstractmethod
    def place_tokens(self, tokens: VisualTokens, layout: Layout) -> tuple[Tensor, int]:
        """Positions of a frame's tokens relative to its start, int64 `[axes, tokens]`, and how far the frame reaches.

        Every position lies in `[0, reach)` on every axis, so that whatever follows starts behind all of them. The store
        moves a block by one integer on all axes, which leaves its inner geometry as it is.
        """

    def clock(self, time_s: float) -> int | None:
        """Where a frame at this stream time lies on the first axis, for models to which a stream is one long video:
        neighbouring frames share their rows and columns, and lie as far apart as their clocks. Of a patch of several
        frames, `time_s` is that of the first. None: each frame is a video of its own, behind what came before it."""
        return None

    def place_text(self, num_tokens: int) -> tuple[Tensor, int]:
        """Positions of text relative to its start, int64 `[axes, tokens]`, and how far they reach."""
        place = torch.arange(num_tokens, device=self.spec.device)
        return place.expand(self.spec.position_axes, -1), num_tokens

    @abstractmethod
    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 `[tokens, head_dim]` each, of positions `[axes, tokens]` (half-split layout)."""

    # thinking
    @abstractmethod
    def extend(self, embeddings: Tensor, attention: Attention, extras: Mapping[str, Tensor] | None = None) -> Tensor:
        """One pass through the language layers over packed tokens `[tokens, hidden_dim]`; the last hidden states.

        `extras` hold rows for every packed token (zeros where a token has none).
        """

    def extend_lean(
        self, embeddings: Tensor, attention: Attention, extras: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """As `extend` within rounding, by the fastest way the model has for packed serving; nothing in it may wait for
        the device."""
        return self.extend(embeddings, attention, extras)

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, float32 `[tokens, vocabulary]`; ids that stand for no text are -inf."""


@dataclass(frozen=True)
class ClipAnswer:
    """What a `ClipModel` said."""

    text: str
    context_tokens: int
    """Tokens that stood for pictures."""
    prompt_tokens: int
    """All other tokens before the answer."""
    new_tokens: int
    complete: bool
    """Did the model end by itself?"""


class ClipModel(ABC):
    """A model that can do no more than look at a few pictures and answer, all over again at every question.

    The face of models without an adapter of their own. It holds weights and no stream state, offers nothing to encoders
    and compressors, and remembers nothing: a session keeps the last pictures for it.
    """

    name: str
    device: torch.device

    @abstractmethod
    def answer(
        self,
        images: Sequence[np.ndarray],
        question: str,
        *,
        wishes: Mapping[str, float],
        max_new_tokens: int = 64,
        seed: int | None = None,
    ) -> ClipAnswer:
        """Answer a question about uint8 `[rows, cols, 3]` pictures, oldest first; `wishes` as in
        `VideoModel.token_choice`."""


# ------------------------------------------------------------------------------------------------- what methods are


class Method(ABC):
    """Base of every interchangeable method: a frozen dataclass of settings."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Names a model must offer."""
    realises: ClassVar[tuple[str, ...]] = ()
    """Keys of the published systems (`onlooker/core/systems.toml`) that this method stands for."""

    @abstractmethod
    def new_state(self) -> StreamState:
        """What this method remembers about one stream before its first frame."""

    def less(self) -> Self | None:
        """This method with less to do, for times when all streams together are too much; None: there is no less.

        Streams go on with it from one frame to the next, and with this one again later: states fit both.
        """
        return None

    def check(self, model: VideoModel) -> None:
        """Raise `ModelError` when the model does not offer what this method needs."""
        if missing := sorted(self.needs - model.offers):
            raise ModelError(
                f"{type(self).__name__} needs {', '.join(missing)}, which {model.spec.name} does not offer",
                given=f"the model offers {', '.join(sorted(model.offers)) or 'nothing special'}",
                do="choose another method or model (see: onlooker methods)",
            )


class EncoderAccelerator(Method):
    """Runs a vision tower over one frame of each of several streams, perhaps reusing earlier work."""

    @abstractmethod
    def encode(self, tower: VisionTower, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """Run the tower. `hidden` is `[streams, tokens, dim]`; row b belongs to `states[b]`, which is updated.

        The result of a stream must not depend on the other streams in the batch.
        """

    def cost(self, tower: VisionTower) -> float:
        """Mean FLOP of a frame as a share of the dense tower's (1.0 = dense), counted, not measured."""
        return 1.0

    def state_bytes(self, layers: int, tokens: int, dim: int, itemsize: int = 2) -> int:
        """Bytes that a stream's state takes in a tower of so many layers on so many tokens of this width."""
        return 0

    def prepare(self, tower: VisionTower, like: Tensor, max_streams: int, on_step: Callable[[str], None]) -> "Prepared":
        """This method in steps of fixed shape for up to `max_streams` streams of one tower, all made now.

        `like` is any embedded frame (`[tokens, dim]`): its dtype and device are those of all frames to come. `on_step`
        is told the name of every step made. Raises `ModelError` when the method, with its settings, or the tower has no
        such form.
        """
        raise ModelError(
            f"{type(self).__name__} has no steps of fixed shape",
            do="run it without graphs, or choose stc_cacher or full",
        )

    def take_over(self, prepared: "Prepared") -> "Prepared":
        """Steps that were prepared by the same method with other refresh settings, under these settings."""
        return prepared


class Prepared(Protocol):
    """An encoder made ready for one tower: the same results and states as its method, within rounding, but faster."""

    def encode(self, hidden: Tensor, states: Sequence[StreamState]) -> Encoded:
        """As `EncoderAccelerator.encode`. Raises `InputError` for more streams than were prepared for."""
        ...


class Compressor(Method):
    """Keeps only the telling visual tokens of each frame, before the language model. Causal: emission is final."""

    @abstractmethod
    def compress(self, tokens: VisualTokens, state: StreamState) -> VisualTokens:
        """The tokens to keep of the newest frame of one stream, in order; `state` is updated."""

    def compress_streams(self, batch: Sequence[VisualTokens], states: Sequence[StreamState]) -> list[VisualTokens]:
        """The newest frame of several streams. Methods may override this to work on all of them at once."""
        return [self.compress(tokens, state) for tokens, state in zip(batch, states, strict=True)]


class MemoryPolicy(Method):
    """Decides about blocks of keys and values; the store carries the decision out. Never touches a key or value."""

    scores_layers: ClassVar[bool] = False
    """True when `recall` wants the question's score of every block, layer by layer (a first pass over the question)."""
    rereads: ClassVar[bool] = False
    """True when nothing is prefilled while watching; the recalled frames' tokens are read at the question."""

    @abstractmethod
    def plan(self, spans: Sequence[Span], state: StreamState) -> Plan:
        """After a chunk was stored: what to park and what to forget. `spans` are all blocks, in stream order.

        Must not take time that grows with the number of blocks already parked.
        """

    def scoring(self) -> Scoring:
        """How blocks are scored, if `scores_layers`."""
        return "mean"

    def recall(self, spans: Sequence[Span], scores: Tensor | None, state: StreamState) -> Recall:
        """What a question may see, in one layer if `scores_layers` (then `scores` is float32 `[spans]`), else in all.

        The default is everything on the device. Must not change `state`.
        """
        return Recall(tuple(span.id for span in spans if span.tier.value == "device"))


@dataclass(frozen=True)
class Moment:
    """What a response policy sees of the newest frame of one stream."""

    time_s: float
    kept_ratio: float
    """Share of the frame's visual tokens that the compressor kept."""
    recomputed_ratio: float | None
    """Share of the tower's tokens that the encoder computed anew; None unless the session traces its work."""
    speak_probability: float | None = None
    """The model's own probability of yes to the standing question, where a method needs it and it was asked for."""


class ResponsePolicy(Method):
    """Decides, frame by frame, whether the model should speak by itself. Never generates."""

    @abstractmethod
    def should_speak(self, moment: Moment, state: StreamState) -> bool:
        """Is now a moment to speak? `state` is updated."""
