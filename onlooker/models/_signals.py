"""What a checkpoint was trained to tell of a moment: a token for silence, heads on a frame's last hidden state.

Both are named under `onlooker` in its config: `"silence": ["<tokens>", ...]` and `"heads": ["informative", ...]`. The
weights of the heads lie beside the checkpoint's own in `heads.safetensors`: `NAME.weight` `[2, hidden_dim]` (the second
row is yes, as in MMDuet) or `[1, hidden_dim]` (a logit, as in Dispider), and perhaps `NAME.bias`.
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

    @property
    def offers(self) -> frozenset[str]:
        """What a model with these offers."""
        named = {"silence_probability": self.silence_ids, "heads": self.head_names}
        return frozenset(name for name, there in named.items() if there)

    def heads(self, hidden: Tensor) -> Tensor:
        """Probabilities, float32 `[tokens, heads]`, of hidden states `[tokens, hidden_dim]`."""
        if self.weight is None:
            return hidden.new_zeros(len(hidden), 0, dtype=torch.float32)
        return torch.nn.functional.linear(hidden, self.weight, self.bias).float().sigmoid()


def read_signals(folder: Path, own: Mapping[str, Any], tokenizer: Any, like: Tensor) -> Signals:
    """What a checkpoint's config says under `onlooker`; weights as `like`, a row `[hidden_dim]`. Raises `ModelError`
    for a silence that is no token, and for heads whose weights are missing or of another size."""
    silence = [_token(tokenizer, text) for text in own.get("silence", [])]
    names: tuple[str, ...] = tuple(own.get("heads", []))
    if not names:
        return Signals(frozenset(silence))
    try:
        stored = load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            "the checkpoint's heads cannot be read", given=f"{folder / FILE}: {error}", do="fetch the checkpoint again"
        ) from error
    weights, biases = [], []
    for name in names:
        weight = stored.get(f"{name}.weight", torch.zeros(0, 0))
        bias = stored.get(f"{name}.bias", torch.zeros(len(weight)))
        if weight.shape not in ((1, len(like)), (2, len(like))) or bias.shape != weight.shape[:1]:
            given = f"{name}: {list(weight.shape)}, bias {list(bias.shape)}"
            raise ModelError("a head is [1 or 2, hidden]", given=given, do=f"hidden is {len(like)}")
        weights.append(weight[-1] - (weight[0] if len(weight) == 2 else 0))
        biases.append(bias[-1] - (bias[0] if len(weight) == 2 else 0))
    return Signals(frozenset(silence), names, torch.stack(weights).to(like), torch.stack(biases).to(like))


def _token(tokenizer: Any, text: str) -> int:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ModelError("silence is one token", given=f"{text!r} is {len(ids)}", do="name a token in the config")
    return ids[0]
