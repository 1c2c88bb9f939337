"""What all families share: a network and a tokenizer of Transformers, the text around the frames, the sizes."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from onlooker.core.contracts import Attention, Decider, ModelSpec, TokenChoice, TokenConstraint, VideoModel
from onlooker.core.errors import InputError, ModelError
from onlooker.core.spans import Layout
from onlooker.models._arithmetic import ARITHMETICS
from onlooker.models._grammar import Grammar
from onlooker.models._language import LanguageLayers, LeanLayers, token_mask
from onlooker.models._loading import choose_device, choose_dtype, find_folder, load_network, load_tokenizer, read_config
from onlooker.models._prompt import Prompt
from onlooker.models._signals import Signals, read_signals


class CheckpointModel(VideoModel):
    """The reading and thinking half of a family. Takes the network over: use it through this object only."""

    model_type: ClassVar[str]
    """`model_type` of the family's checkpoints."""
    network_class: ClassVar[str]
    """Name of the family's class in Transformers."""
    pairs: ClassVar[bool | None] = None
    """Are frames read in pairs unless one asks for another form? None: the family reads single frames only."""

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        prompt: Prompt,
        name: str,
        *,
        position_axes: int = 1,
        layout: Layout = "pack",
    ) -> None:
        config, text = network.config, network.config.text_config
        self._network, self._tokenizer, self._prompt = network, tokenizer, prompt
        self._layers, self._signals = LanguageLayers(network), Signals()
        self._arithmetic = "model"
        embedding = network.get_input_embeddings().weight
        self.spec = ModelSpec(
            name=name,
            num_layers=text.num_hidden_layers,
            num_query_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            hidden_dim=text.hidden_size,
            dtype=embedding.dtype,
            device=embedding.device,
            max_positions=text.max_position_embeddings,
            position_axes=position_axes,
            layout=layout,
        )
        silent = {name: getattr(config, name, -1) for name in _PLACEHOLDERS}
        rows = network.get_output_embeddings().weight.shape[0]
        self._settings: tuple[dict[str, Any], dict[tuple[tuple[str, float], ...], Any]] = {}, {}
        self._silent = token_mask(rows, len(tokenizer), silent, embedding.device)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: str = "auto",
        device: str = "auto",
        name: str | None = None,
        pairs: bool | None = None,
    ) -> Self:
        """A checkpoint from a local folder or a hub id; code shipped with a checkpoint is never run.

        `name` is what it is called in messages and results (default: the source). `pairs`: whether frames are read two
        at a time (see `docs/concepts.md`); None is what suits the family.
        Raises `ModelError` for a missing, damaged or incomplete checkpoint, or one of another family.
        """
        import transformers  # its model classes cost seconds, so not before one is needed

        folder = find_folder(source)
        if (kind := read_config(folder)["model_type"]) != cls.model_type:
            raise ModelError(f"the checkpoint is no {cls.model_type}", given=kind, do="use onlooker.models.load")
        if pairs and cls.pairs is None:
            raise ModelError(
                "this family reads single frames, never pairs", given=f"pairs=True, {kind}", do="leave pairs out"
            )
        place, tokenizer = choose_device(device), load_tokenizer(folder)
        network = load_network(getattr(transformers, cls.network_class), folder, choose_dtype(dtype, place), place)
        model = cls.of_network(
            network, tokenizer, folder, name or str(source), bool(cls.pairs if pairs is None else pairs)
        )
        model.take_signals(folder)
        return model

    def take_signals(self, folder: Path) -> None:
        """Offer what the checkpoint in `folder` was trained to tell of a moment. Raises `ModelError` for damage."""
        own, like = getattr(self._network.config, "onlooker", None) or {}, self._network.get_input_embeddings().weight
        signals = read_signals(folder, own, self._tokenizer, like.detach()[0])
        self._signals = replace(signals, taught_frames=int(own.get("taught_frames", 0)))
        self.offers |= self._signals.offers

    @classmethod
    def of_network(cls, network: Any, tokenizer: Any, folder: Path, name: str, pairs: bool) -> Self:
        """A loaded network with the processor settings and the chat template of `folder`."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ reading

    def prefix_ids(self) -> list[int]:
        return list(self._prompt.prefix_ids)

    def frame_ids(self, time_s: float) -> list[int]:
        return []

    def question_ids(self, question: str) -> list[int]:
        return self._prompt.question_ids(question)

    def retrieval_ids(self, question: str) -> list[int]:
        return self._prompt.text_ids(question)

    def closing_embeddings(self) -> Tensor:
        return self.embed_text([])

    def embed_text(self, ids: Sequence[int]) -> Tensor:
        # From pinned memory the copy is not waited for; it would hold up every frame that carries its time as text.
        index = torch.tensor(list(ids), dtype=torch.int64, pin_memory=bool(ids) and self.spec.device.type == "cuda")
        index = index.to(self.spec.device, non_blocking=True)
        return self._network.get_input_embeddings()(index)

    def decode_text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    @property
    def end_ids(self) -> frozenset[int]:
        ends = self._network.generation_config.eos_token_id
        ends = self._tokenizer.eos_token_id if ends is None else ends
        return frozenset(ends if isinstance(ends, list | tuple) else () if ends is None else (ends,))

    @cached_property
    def _grammar(self) -> Grammar:
        return Grammar(self._tokenizer, self.end_ids)

    def constraint(self, schema: str) -> TokenConstraint:
        return self._grammar.constraint(schema)

    def _settled(self, wishes: Mapping[str, float]) -> Any:
        """What the checkpoint's settings and these wishes come to. The library builds every config of the model anew
        for that, which takes tens of milliseconds a question: so it is kept while the checkpoint's stay as they are."""
        stated, wished = dict(vars(self._network.generation_config)), tuple(sorted(wishes.items()))
        if self._settings[0] != stated or len(self._settings[1]) >= MOST_SETTINGS:
            self._settings = stated, {}
        known = self._settings[1]
        if wished not in known:
            config, _ = self._network._prepare_generation_config(None, **generation_settings(wishes))
            self._network._prepare_special_tokens(
                config, kwargs_has_attention_mask=True, device=self.spec.device, batch_size=1
            )
            known[wished] = config
        return known[wished]

    def token_choice(self, wishes: Mapping[str, float], max_new_tokens: int) -> TokenChoice:
        # The library's own lists of processors, so that whatever a checkpoint asks for is done, in `generate`'s order.
        network, device = self._network, self.spec.device
        config = copy(self._settled(wishes))

        @cache
        def processors(num_read: int) -> Any:
            config.max_length = num_read + max_new_tokens
            return network._get_logits_processor(
                generation_config=config, input_ids_seq_length=num_read, logits_processor=[], device=str(device)
            )

        def adjust(read: Sequence[int], said: Sequence[int], scores: Tensor) -> Tensor:
            ids = torch.tensor([[*read, *said]], dtype=torch.int64, device=device)
            return processors(len(read))(ids, scores[None])[0]

        return TokenChoice(bool(config.do_sample), adjust if processors(1) else None)

    # ------------------------------------------------------------------------------------------------ thinking

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self._layers.rotary(positions)

    def compute_in(self, arithmetic: str) -> None:
        if arithmetic not in ARITHMETICS:
            raise InputError("there is no such arithmetic", given=arithmetic, do=f"one of: {', '.join(ARITHMETICS)}")
        if arithmetic not in ("model", self._arithmetic):
            vars(self).pop("lean", None)
            self.lean = LeanLayers(self._network.get_decoder(), arithmetic)
            self._arithmetic = arithmetic

    def extend(self, embeddings: Tensor, attention: Attention, extras: Mapping[str, Tensor] | None = None) -> Tensor:
        if self._arithmetic != "model":  # the stock layers have no weights then
            return self.extend_lean(embeddings, attention, extras)
        return self._layers.extend(embeddings, attention)

    @cached_property
    def lean(self) -> LeanLayers:
        """The layers laid out for packed serving: made when they are first used, since they copy some weights."""
        return LeanLayers(self._network.get_decoder())

    def begin_lean(
        self, embeddings: Tensor, attention: Attention, extras: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        return self.lean.begin(embeddings, attention)

    def end_lean(self, *rows: Tensor) -> Tensor:
        return self.lean.end(*rows)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._network.get_output_embeddings()(hidden).float().masked_fill(self._silent, -torch.inf)

    # ------------------------------------------------------------------------------------------------ telling when

    @property
    def silence_ids(self) -> frozenset[int]:
        return self._signals.silence_ids

    def frame_end_logits(self, hidden: Tensor) -> Tensor:
        return self._signals.silenced(self.logits(hidden), hidden)

    @property
    def decider(self) -> Decider | None:
        return self._signals.decider

    @property
    def head_names(self) -> tuple[str, ...]:
        return self._signals.head_names

    @property
    def taught_frames(self) -> int:
        return self._signals.taught_frames

    def heads(self, hidden: Tensor) -> Tensor:
        return self._signals.heads(hidden)


def generation_settings(wishes: Mapping[str, float]) -> dict[str, Any]:
    """Wishes as in `VideoModel.token_choice`, in the words of Transformers' `generate`."""
    if "temperature" not in wishes:
        return dict(wishes)
    if wishes["temperature"] > 0:
        return {**wishes, "do_sample": True}
    # What shapes a draw has no meaning without one; the library would say so at every answer.
    unused = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "typical_p": 1.0, "top_h": None}
    return {**wishes, **unused, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "do_sample": False}


MOST_SETTINGS = 64
"""Wishes of askers whose settings are kept."""
_PLACEHOLDERS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
"""Names, in a config, of the tokens that stand for or around pictures: no model means to say them."""
