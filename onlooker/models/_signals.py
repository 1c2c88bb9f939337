"""What a checkpoint was trained to tell of a moment: a token for silence, heads on a frame's last hidden state, a net.

They are named under `onlooker` in its config: `"silence": ["<tokens>", ...]`, `"heads": ["informative", ...]` and
`"decider": {"heads": 8}`. The weights lie beside the checkpoint's own in `heads.safetensors`: `NAME.weight`
`[2, hidden_dim]` (the second row is yes, as in MMDuet) or `[1, hidden_dim]` (a logit), and perhaps `NAME.bias`; where a
single silence token was trained on a frozen model, its row of the output layer as `silence.weight` `[1, hidden_dim]`
and `silence.bias`, which counts where a frame ends and nowhere else; and the net's as `decider.*`. A model that adapts
its neighbour's decoder may share the neighbour's net, which reads no decoder: `{"heads": 8, "of": "FOLDER"}`.
Matrices may be kept in eight bits (`_eight_bits.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from onlooker.core.errors import ModelError
from onlooker.models import _eight_bits
from onlooker.models._decider import NetDecider, net_of

FILE = "heads.safetensors"


@dataclass(frozen=True)
class Signals:
    """The silence tokens and the heads of one checkpoint."""

    silence_ids: frozenset[int] = frozenset()
    head_names: tuple[str, ...] = ()
    weight: Tensor | None = None
    """Of all heads, each as the difference of yes and no: `[heads, hidden_dim]`."""
    bias: Tensor | None = None
    """`[heads]`."""
    silence_row: Tensor | None = None
    """Of the silence token where a frame ends, `[hidden_dim]`; None: the model's own."""
    silence_bias: Tensor | None = None
    """`[1]`."""
    decider: NetDecider | None = None
    taught_frames: int = 0
    """Frames of the clips they were taught on; 0: not known."""

    @property
    def offers(self) -> frozenset[str]:
        """What a model with these offers."""
        named = {"silence_probability": self.silence_ids, "heads": self.head_names, "decision": self.decider}
        return frozenset(name for name, there in named.items() if there)

    def heads(self, hidden: Tensor) -> Tensor:
        """Probabilities, float32 `[tokens, heads]`, of hidden states `[tokens, hidden_dim]`."""
        if self.weight is None:
            return hidden.new_zeros(len(hidden), 0, dtype=torch.float32)
        return torch.nn.functional.linear(hidden, self.weight, self.bias).float().sigmoid()

    def silenced(self, scores: Tensor, hidden: Tensor) -> Tensor:
        """Scores `[tokens, vocabulary]` of hidden states `[tokens, hidden_dim]`, that of silence as it was trained."""
        if self.silence_row is None:
            return scores
        (token,) = self.silence_ids
        scores = scores.clone()
        scores[:, token] = torch.nn.functional.linear(hidden, self.silence_row[None], self.silence_bias)[:, 0].float()
        return scores


def read_signals(folder: Path, own: Mapping[str, Any], tokenizer: Any, like: Tensor) -> Signals:
    """What a checkpoint's config says under `onlooker`; weights as `like`, a row `[hidden_dim]`. Raises `ModelError`
    for a silence that is no token, and for heads whose weights are missing or of another size."""
    silence = [_token(tokenizer, text) for text in own.get("silence", [])]
    names, net = tuple(own.get("heads", [])), own.get("decider")
    if not names and not net and not (folder / FILE).is_file():
        return Signals(frozenset(silence))
    stored = _stored(folder / FILE)
    row, row_bias = _silence_row(stored, silence, like)
    if net and "of" in net:
        stored = {**_stored(folder.parent / str(net["of"]) / FILE), **stored}
    decider = _decider(stored, net, like) if net else None
    if not names:
        return Signals(frozenset(silence), silence_row=row, silence_bias=row_bias, decider=decider)
    weights, biases = [], []
    for name in names:
        weight = stored.get(f"{name}.weight", torch.zeros(0, 0))
        bias = stored.get(f"{name}.bias", torch.zeros(len(weight)))
        if weight.shape not in ((1, len(like)), (2, len(like))) or bias.shape != weight.shape[:1]:
            given = f"{name}: {list(weight.shape)}, bias {list(bias.shape)}"
            raise ModelError("a head is [1 or 2, hidden]", given=given, do=f"hidden is {len(like)}")
        weights.append(weight[-1] - (weight[0] if len(weight) == 2 else 0))
        biases.append(bias[-1] - (bias[0] if len(weight) == 2 else 0))
    weight, bias = torch.stack(weights).to(like), torch.stack(biases).to(like)
    return Signals(frozenset(silence), names, weight, bias, row, row_bias, decider)


def _stored(file: Path) -> dict[str, Tensor]:
    try:
        return _eight_bits.unpack(load_file(file))
    except (OSError, SafetensorError) as error:
        raise ModelError(
            "the checkpoint's heads cannot be read", given=f"{file}: {error}", do="fetch the checkpoint again"
        ) from error


def _silence_row(
    stored: Mapping[str, Tensor], silence: list[int], like: Tensor
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    weight = stored.get("silence.weight")
    if weight is None:
        return None, None
    bias = stored.get("silence.bias", torch.zeros(1))
    if weight.shape != (1, len(like)) or bias.shape != (1,) or len(silence) != 1:
        given = f"{list(weight.shape)} for {len(silence)} tokens"
        raise ModelError("a trained silence is one row for one token", given=given, do=f"hidden is {len(like)}")
    return weight[0].to(like), bias.to(like)


def _decider(stored: Mapping[str, Tensor], net: Mapping[str, Any], like: Tensor) -> NetDecider:
    weights = {name.removeprefix("decider."): t for name, t in stored.items() if name.startswith("decider.")}
    try:
        decider = NetDecider(net_of(weights, int(net["heads"])))
        if decider.net.key.weight.shape[1] != len(like):
            raise ValueError(f"made for a width of {decider.net.key.weight.shape[1]}, and the model has {len(like)}")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            "the checkpoint's decision net does not fit", given=str(error)[:200], do="fetch the checkpoint again"
        ) from error
    decider.net.to(like.device)
    return decider


def _token(tokenizer: Any, text: str) -> int:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ModelError("silence is one token", given=f"{text!r} is {len(ids)}", do="name a token in the config")
    return ids[0]
