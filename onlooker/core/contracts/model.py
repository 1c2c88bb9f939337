"""What a model is: one family behind one face."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from onlooker.core.contracts.adapt import Adapter
from onlooker.core.contracts.decide import Decider
from onlooker.core.contracts.towers import SideTower
from onlooker.core.contracts.vision import Encoded, VisionTower
from onlooker.core.errors import InputError, ModelError
from onlooker.core.kinds import KINDS
from onlooker.core.spans import Layout
from onlooker.core.tokens import VisualTokens


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


class TokenConstraint(Protocol):
    """What one answer may say next."""

    def allow(self, scores: Tensor) -> Tensor:
        """Scores `[vocabulary]` in which what may not come next is minus infinity."""
        ...

    def took(self, token: int) -> None:
        """Go on behind a token."""
        ...


class VideoModel(ABC):
    """One model family behind one face. It holds weights and no stream state."""

    spec: ModelSpec
    offers: frozenset[str] = frozenset()
    adapters: tuple[Adapter, ...] = ()
    """Trained parts that tokens go through before they are compressed, in this order (see `attach`)."""
    side_towers: tuple[SideTower, ...] = ()
    """Further vision towers, whose features are fused with those of its own before the projection, in this order (see
    `attach_tower`)."""
    prefixes: Mapping[str, Tensor] = MappingProxyType({})
    """Soft prefixes that it knows by name, rows `[tokens, hidden_dim]` on the device (see `Session.prefix`)."""
    language_extras: frozenset[str] = frozenset()
    """Names of token extras that enter the language layers (DeepStack rows)."""
    described: frozenset[str] = frozenset()
    """Those of `offers` that are computed of a frame, and only where a method needs them (see `describe`): `saliency`,
    the attention that each token gets, `pixels`, the picture under it, and `global`, rows about the whole frame."""
    patch_frames: int = 1
    """Frames that go through the tower together, as one patch in time. With more than one, a stream's newest frames are
    held back until there are so many of one size."""
    patch_s: float = float("inf")
    """Frames further apart, in seconds, are no patch: each is one by itself, shown `patch_frames` times."""

    def attach(self, adapter: Adapter) -> None:
        """Add a trained part, before any engine is built around the model. Raises `InputError` for a name that is taken
        already, or that nobody could need."""
        self._offer("an adapter", adapter)
        self.adapters = (*self.adapters, adapter)

    def attach_tower(self, tower: SideTower) -> None:
        """Add a further vision tower, before any engine is built around the model. Raises `InputError` as `attach`."""
        self._offer("a tower", tower)
        self.side_towers = (*self.side_towers, tower)

    def _offer(self, what: str, part: Adapter | SideTower) -> None:
        taken = {*KINDS, *(one.name for one in (*self.adapters, *self.side_towers)), *self.offers}
        if part.name in taken or not part.name.isidentifier():
            given = f"{part.name!r}, beside {', '.join(sorted(taken))}"
            raise InputError(f"{what} needs a name of its own", given=given, do="a word in lower case")
        self.offers = self.offers | part.offers | {part.name}

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

    def shrunk(self, image: np.ndarray, share: float) -> Tensor:
        """As `preprocess`, of one picture and with this share of the rows and columns it would have: `[channels, rows,
        cols]`, which `embed_patches`, `tower` and `project` take. For models that offer `PICTURE_SIZES`; this is the
        form of those that take pictures of any size."""
        image = self.resize(image)
        size = [max(1, round(length * share)) for length in image.shape[:2]]
        batch = torch.from_numpy(image).permute(2, 0, 1)[None]
        small = interpolate(batch, size=size, mode="bilinear", antialias=True)
        return self.preprocess([small[0].permute(1, 2, 0).contiguous().numpy()])[0]

    @abstractmethod
    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Patch and position embedding: `[streams, channels, rows, cols]` to `[streams, tokens, dim]`.

        Channels are those of all frames of a patch, one frame after the other; of a single frame only, it stands for
        them all.
        """

    @abstractmethod
    def tower(self, pixels_shape: tuple[int, ...]) -> VisionTower:
        """The tower for pixels of shape `[channels, rows, cols]`. Frames of equal shape run in one batch."""

    @property
    def tower_dim(self) -> int:
        """Width of the tokens in its own tower."""
        blank = np.zeros((56, 56, 3), dtype=np.uint8)
        return self.tower(tuple(torch.cat(self.preprocess([blank] * self.patch_frames)).shape)).dim

    def towers(self, patch: Sequence[np.ndarray]) -> dict[str, VisionTower]:
        """All towers by name, the model's own as "", for a patch of such pictures: what a frame costs is theirs
        together."""
        own = {"": self.tower(tuple(torch.cat(self.preprocess(patch)).shape))}
        return own | {side.name: side.tower(tuple(side.preprocess(patch).shape)) for side in self.side_towers}

    @abstractmethod
    def project(
        self, encoded: Encoded, pixels_shape: tuple[int, ...]
    ) -> tuple[Tensor, tuple[int, int], dict[str, Tensor]]:
        """Tower output to language-model tokens: features `[streams, tokens, dim]`, their grid, and extras by name
        (each `[streams, tokens, ...]`)."""

    def taps_for(self, wanted: frozenset[str], tower: VisionTower) -> frozenset[int]:
        """Layers of the tower whose output `describe` is made of."""
        return frozenset()

    def describe(
        self, wanted: frozenset[str], encoded: Encoded, pixels: Tensor, features: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of `described`, what is wanted: extras of the tokens that `project` gave (`features`), each
        `[streams, tokens, ...]`, and arrays about whole frames, each `[streams, ...]`. `encoded` has the layers of
        `taps_for` among its taps; `pixels` are what was embedded, `[streams, channels, rows, cols]`."""
        return {}, {}

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
        `repetition_penalty`, `min_new_tokens`) where there are any, and by the checkpoint's own generation settings in
        all else."""

    def constraint(self, schema: str) -> TokenConstraint:
        """What an answer may say that follows a JSON schema, given as text.

        Raises `InputError` for a schema that is none or cannot be followed, `ModelError` where no answer can be held.
        """
        raise ModelError("this model's answers cannot be held to a schema", given=self.spec.name, do="ask in words")

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
        """Cosines and sines, float32 `[tokens, head_dim]` each, of positions `[axes, tokens]` (half-split layout).

        Exact at any position, also below zero: a stream's positions grow as long as it is watched, and keys that lie
        at one place are read at another by a rotation by the difference.
        """

    # thinking
    @abstractmethod
    def extend(self, embeddings: Tensor, attention: Attention, extras: Mapping[str, Tensor] | None = None) -> Tensor:
        """One pass through the language layers over packed tokens `[tokens, hidden_dim]`; the last hidden states.

        `extras` hold rows for every packed token (zeros where a token has none).
        """

    def compute_in(self, arithmetic: str) -> None:
        """Compute the products of the language layers in these numbers from now on: `fp8`, 8-bit floating point with a
        scale a row on both sides, in half of the memory; there is no way back, since the weights are in 8 bits then.
        `model` changes nothing.

        Raises `InputError` for an unknown arithmetic, and `ModelError` for a device or a model that lacks it.
        """
        if arithmetic != "model":
            given, do = f"{arithmetic}, {self.spec.name}", "leave arithmetic out"
            raise ModelError("this model computes in its own numbers only", given=given, do=do)

    def extend_lean(
        self, embeddings: Tensor, attention: Attention, extras: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """As `extend` within rounding, by the fastest way the model has for packed serving; nothing in it may wait for
        the device."""
        return self.end_lean(*self.begin_lean(embeddings, attention, extras))

    def begin_lean(
        self, embeddings: Tensor, attention: Attention, extras: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """`extend_lean` up to where tokens have seen each other for the last time: rows of which `end_lean` makes their
        last hidden states, `[tokens, ...]` each, until the next pass. Whom nobody asks needs no more; behind the last
        layer's own keys and values, what is found for those may be anything."""
        return (self.extend(embeddings, attention, extras),)

    def end_lean(self, *rows: Tensor) -> Tensor:
        """Last hidden states `[tokens, hidden_dim]` of some tokens, from copies of their rows, which may be written
        to."""
        return rows[0]

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, float32 `[tokens, vocabulary]`; ids that stand for no text are -inf."""

    # telling when
    @property
    def silence_ids(self) -> frozenset[int]:
        """Token ids that say, where a frame ends, that nothing is to be said; with some, the model offers
        `silence_probability`."""
        return frozenset()

    def frame_end_logits(self, hidden: Tensor) -> Tensor:
        """Scores as `logits` gives them where a frame ends, with those of `silence_ids` as they were trained."""
        return self.logits(hidden)

    @property
    def decider(self) -> Decider | None:
        """A trained decision net; with one, the model offers `decision`."""
        return None

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of trained heads on a frame's last hidden state; with some, the model offers `heads`."""
        return ()

    @property
    def taught_frames(self) -> int:
        """Frames of the clips that what tells when was taught on: what a memory should show it at most; 0: not known.
        With more in view heads tell of things that are not there."""
        return 0

    def heads(self, hidden: Tensor) -> Tensor:
        """What the heads give hidden states `[tokens, hidden_dim]`: probabilities, float32 `[tokens, heads]`."""
        return hidden.new_zeros(len(hidden), 0, dtype=torch.float32)


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
    patch_frames: int = 1
    """As of a `VideoModel`: nothing is held back."""
    prefixes: Mapping[str, Tensor] = MappingProxyType({})
    """None: there is no memory to write them into."""

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
