"""Language layers of Transformers whose attention is given from outside, with un-rotated queries and keys.

Two seams, both on one instance: an attention function registered under our name, which hands queries, keys and values
to the `Attention` passed along with the call; and a rotary module that rotates by nothing, so that whoever keeps the
keys decides about positions.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from onlooker.core.contracts import Attention
from onlooker.core.errors import ModelError
from onlooker.kernels.language_rows import add_norm
from onlooker.models._arithmetic import Weights, arithmetic

_NAME = "onlooker_stream"  # names with "flash" in them switch other code paths on


class LanguageLayers:
    """The decoder of one network, taken over: its own `forward` and `generate` are of no use afterwards."""

    def __init__(self, network: Any) -> None:
        module = network.get_decoder()
        config = module.config
        if unknown := sorted(set(getattr(config, "layer_types", None) or []) - {"full_attention"}):
            raise ModelError(
                "the language model has layers we cannot feed",
                given=", ".join(unknown),
                do="use a checkpoint whose layers all attend to everything (use_sliding_window=false)",
            )
        AttentionInterface.register(_NAME, _hand_over)
        AttentionMaskInterface.register(_NAME, _no_mask)
        network.set_attn_implementation({"text_config": _NAME})
        self._module = module
        self._rotary: Any = module.rotary_emb
        if isinstance(self._rotary, _NoRotation):  # a network may be wrapped twice
            self._rotary = self._rotary.replaced[0]
        module.rotary_emb = _NoRotation(self._rotary, _head_dim(config))
        self._frequencies: dict[int, tuple[Tensor, Tensor]] = {}

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 `[tokens, head_dim]`, of positions int64 `[axes, tokens]`.

        Those of the family's own module, but exact at any position, where its float32 angles lose a bit with every
        doubling. With three axes, that module decides which frequencies belong to which axis (M-RoPE).
        """
        frequencies, axis = self._turns(len(positions), positions.device)
        # Few steps, each of which is a launch in every pass.
        places = positions if len(positions) == 1 else positions.index_select(0, axis)
        angles, scale = places.T * frequencies, self._rotary.attention_scaling
        turns = angles.cos(), angles.sin()
        cos, sin = turns if scale == 1.0 else (turn * scale for turn in turns)
        return cos.float(), sin.float()

    def _turns(self, axes: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Angle of one position, float64 `[head_dim]`, and the axis that it belongs to, int64 `[head_dim]`."""
        if axes not in self._frequencies:
            frequencies = self._rotary.inv_freq.to(device, torch.float64)
            like = torch.empty(0, dtype=torch.float32, device=device)
            one_step = torch.eye(axes, dtype=torch.int64, device=device)  # a step on each axis in turn
            _, sin = self._rotary(like, one_step if axes == 1 else one_step[:, None])
            axis = sin[0, :, : len(frequencies)].abs().argmax(0)
            self._frequencies[axes] = frequencies.repeat(2), axis.repeat(2)
        return self._frequencies[axes]

    def extend(self, embeddings: Tensor, attention: Attention, deepstack: Tensor | None = None) -> Tensor:
        """Last hidden states `[tokens, hidden_dim]` of packed tokens `[tokens, hidden_dim]`.

        `deepstack` (`[tokens, levels, hidden_dim]`) is added to the hidden states after the first `levels` layers, as
        the decoders of models with DeepStack do; rows of tokens that have none are zero.
        """
        more = {}
        if deepstack is not None:
            # The place of the rows is given as the number of the only sequence, not as a mask of tokens: the library
            # indexes with it, and counting a mask waits for the device.
            only = torch.zeros(1, dtype=torch.int64, device=embeddings.device)
            more = {"visual_pos_masks": only, "deepstack_visual_embeds": list(deepstack.unbind(1))}
        # A ready-made four-dimensional mask is passed through untouched, and our attention ignores it: without one,
        # the library would look for packed sequences in the positions, which waits for the device.
        ready_mask = embeddings.new_empty(1, 1, 1, 1)
        result = self._module(
            inputs_embeds=embeddings[None], attention_mask=ready_mask, use_cache=False, stream=attention, **more
        )
        return result.last_hidden_state[0]


class LeanLayers:
    """The same decoder from its weights, for serving: queries, keys and values from one product, each residual and its
    norm in one pass over memory. Within rounding of `LanguageLayers.extend`; for inference only.

    Knows pre-norm decoder layers with RMS norms and a SiLU-gated MLP (Qwen2, Qwen3, Llama). Raises `ModelError` for
    others. The decoder's own projections become parts of those that are joined.
    """

    def __init__(self, decoder: Any, kind: str = "model") -> None:
        """`kind`: in which numbers it multiplies (see `_arithmetic`). Raises `ModelError` for a device or sizes that
        have none such."""
        config = decoder.config
        if config.hidden_act != "silu" or not all(_is_plain(layer) for layer in decoder.layers):
            raise ModelError(
                "the language model's layers are not built as lean passes know them",
                given=type(decoder).__name__,
                do="run it through plain passes",
            )
        self._layers = decoder.layers
        self._norms = [layer.input_layernorm for layer in decoder.layers] + [decoder.norm]
        self._head_dim = _head_dim(config)
        self._heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self._arithmetic = rows = arithmetic(kind, decoder.norm.weight.device)
        linear = [_linear(layer) for layer in decoder.layers]
        for parts in itertools.chain(*linear):
            rows.check(parts)
        self._joined = [_Products(*map(rows.joined, layer)) for layer in linear]

    def begin(self, embeddings: Tensor, attention: Attention, deepstack: Tensor | None = None) -> tuple[Tensor, ...]:
        """`LanguageLayers.extend` until the last layer has attended: hidden states before it, what attention found
        there, and what is added behind it, if anything is."""
        hidden, last = embeddings.clone(), len(self._layers) - 1
        normed, levels = self._norm(hidden, None, 0), 0 if deepstack is None else deepstack.shape[1]
        for number in range(last):
            more = self._behind(number, hidden, self._attended(number, normed, attention))
            if deepstack is not None and number < levels:
                # The stock module rounds after the layer, and then adds.
                hidden += more
                more = deepstack[:, number].contiguous()
            normed = self._norm(hidden, more, number + 1)
        added = () if deepstack is None or last >= levels else (deepstack[:, last],)
        return hidden, self._attended(last, normed, attention), *added

    def end(self, hidden: Tensor, attended: Tensor, added: Tensor | None = None) -> Tensor:
        """Last hidden states of tokens, from the rows that `begin` gave of them; `hidden` is written to."""
        more = self._behind(len(self._layers) - 1, hidden, attended)
        if added is not None:
            hidden += more
            more = added.contiguous()
        return self._norm(hidden, more, len(self._layers))

    def _attended(self, number: int, normed: Any, attention: Attention) -> Tensor:
        """What a layer's attention finds for all tokens, `[tokens, heads * head_dim]`."""
        own: Any = self._layers[number].self_attn
        heads = self._arithmetic.product(normed, self._joined[number].heads).unflatten(-1, (-1, self._head_dim))
        queries, keys, values = heads.split(self._heads, dim=1)
        if hasattr(own, "q_norm"):
            queries, keys = own.q_norm(queries), own.k_norm(keys)
        queries, keys, values = (part.transpose(0, 1) for part in (queries, keys, values))
        return attention.attend(number, queries, keys, values, own.scaling).flatten(1)

    def _behind(self, number: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """A layer behind its attention, whose branch `hidden` takes in; the other branch is the result."""
        rows, products, after = self._arithmetic, self._joined[number], self._layers[number].post_attention_layernorm
        out = rows.product(rows.ready(attended), products.out)
        normed = rows.normed(hidden, out, after.weight, after.variance_epsilon)
        gated = rows.gated(rows.product(normed, products.gate), rows.product(normed, products.up))
        return rows.product(gated, products.down)

    def _norm(self, hidden: Tensor, more: Tensor | None, number: int) -> Any:
        norm, rows = self._norms[number], self._arithmetic
        if number == len(self._layers):  # nothing of the layers multiplies the last one
            return add_norm(hidden, more, norm.weight, norm.variance_epsilon, rows.kernels)
        return rows.normed(hidden, more, norm.weight, norm.variance_epsilon)


@dataclass(frozen=True, eq=False)
class _Products:
    """Of one layer."""

    heads: Weights
    """Queries, keys and values."""
    out: Weights
    gate: Weights
    up: Weights
    down: Weights


def _is_plain(layer: Any) -> bool:
    """True for the layer that `LeanLayers` runs."""
    wanted = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
    gated = {"gate_proj", "up_proj", "down_proj"}
    return wanted == {name for name, _ in layer.named_children()} and gated <= {
        n for n, _ in layer.mlp.named_children()
    }


def _linear(layer: Any) -> list[list[nn.Linear]]:
    """The linear layers behind each of a layer's `_Products`."""
    own, mlp = layer.self_attn, layer.mlp
    return [[own.q_proj, own.k_proj, own.v_proj], [own.o_proj], [mlp.gate_proj], [mlp.up_proj], [mlp.down_proj]]


class _NoRotation(nn.Module):
    """Stands in for the rotary module: rotates by nothing."""

    def __init__(self, replaced: nn.Module, head_dim: int) -> None:
        super().__init__()
        self.replaced = (replaced,)  # in a tuple, so that it is not registered as a part
        self.head_dim = head_dim

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return hidden.new_ones(1, 1, self.head_dim), hidden.new_zeros(1, 1, self.head_dim)


def _hand_over(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    stream: Attention | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    assert stream is not None, "a network taken over by onlooker runs through VideoModel.extend only"
    scale = module.head_dim**-0.5 if scaling is None else scaling
    return stream.attend(module.layer_idx, query[0], key[0], value[0], scale)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def token_mask(num_rows: int, num_tokens: int, silent: Mapping[str, int], device: torch.device) -> Tensor:
    """True for vocabulary rows that stand for no text: padding rows and placeholders, bool `[num_rows]`."""
    mask = torch.arange(num_rows, device=device) >= num_tokens
    for number in silent.values():
        if 0 <= number < num_rows:
            mask[number] = True
    return mask
