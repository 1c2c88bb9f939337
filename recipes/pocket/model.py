"""The pocket model: its sizes, and its training forward as pure functions over the Hugging Face module's parameters."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from recipes.pocket.tokenizer import Encoder


@dataclass(frozen=True)
class PocketSizes:
    """Sizes of the model; the defaults are what ships."""

    image: int = 128
    """Side of a frame in pixels."""
    patch: int = 8
    """Side of a patch in pixels."""
    vision_dim: int = 192
    """Width of the vision tower."""
    vision_layers: int = 6
    """Layers of the vision tower."""
    vision_heads: int = 3
    """Attention heads of the vision tower."""
    vision_mlp: int = 768
    """Width of the tower's MLP."""
    dim: int = 256
    """Width of the decoder."""
    layers: int = 6
    """Layers of the decoder."""
    heads: int = 4
    """Query heads of the decoder."""
    kv_heads: int = 2
    """Key and value heads of the decoder."""
    mlp: int = 768
    """Width of the decoder's MLP."""
    theta: float = 100_000.0
    """Base of the decoder's rotary positions."""

    @property
    def side(self) -> int:
        """Patches along one side of a frame."""
        return self.image // self.patch

    @property
    def frame_tokens(self) -> int:
        """Visual tokens of one frame that the decoder may see."""
        return math.ceil(self.side / 2) ** 2


TINY = PocketSizes(image=32, vision_dim=32, vision_layers=2, vision_heads=2, vision_mlp=64, dim=64, layers=2, heads=2,
                   kv_heads=1, mlp=96)  # fmt: skip
"""Sizes for smoke runs and tests."""


def hf_config(sizes: PocketSizes, encoder: Encoder, vocabulary: int) -> LlavaOnevisionConfig:
    """The Hugging Face configuration."""
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=sizes.vision_dim,
            intermediate_size=sizes.vision_mlp,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=sizes.vision_heads,
            image_size=sizes.image,
            patch_size=sizes.patch,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=sizes.dim,
            intermediate_size=sizes.mlp,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.theta},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=encoder.end,
            pad_token_id=encoder.pad,
        ),
        image_token_index=encoder.encode("<image>")[0],
        video_token_index=encoder.video,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_1",
        image_grid_pinpoints=[[sizes.image, sizes.image]],
        tie_word_embeddings=True,
        onlooker={
            "timestamps": "[mm:ss]",
            "timestamp_rounding": "floor",
            "timestamp_minutes_modulo": 100,
            "newline": "once before the question",
            "layout": "pack",
            "world": "pocket",
            "sizes": asdict(sizes),
        },
    )


class VisionWeights(NamedTuple):
    """Parameters of one tower layer. Functions take these and not the module, so that one compiled graph serves all."""

    norm1: Tensor
    norm1_bias: Tensor
    q: Tensor
    q_bias: Tensor
    k: Tensor
    k_bias: Tensor
    v: Tensor
    v_bias: Tensor
    out: Tensor
    out_bias: Tensor
    norm2: Tensor
    norm2_bias: Tensor
    fc1: Tensor
    fc1_bias: Tensor
    fc2: Tensor
    fc2_bias: Tensor


class TextWeights(NamedTuple):
    """Parameters of one decoder layer."""

    norm1: Tensor
    q: Tensor
    q_bias: Tensor
    k: Tensor
    k_bias: Tensor
    v: Tensor
    v_bias: Tensor
    out: Tensor
    norm2: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear map in the precision of `x`, from master weights."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, 1e-6).to(x.dtype)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return wide.to(x.dtype) * weight.to(x.dtype)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _vision_mlp(x: Tensor, w: VisionWeights) -> Tensor:
    hidden = F.gelu(linear(_layer_norm(x, w.norm2, w.norm2_bias), w.fc1, w.fc1_bias), approximate="tanh")
    return linear(hidden, w.fc2, w.fc2_bias)


def dense_layer(x: Tensor, w: VisionWeights, heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A tower layer on all tokens `[frames, tokens, dim]`: output, keys, values, and the sum of both branches."""
    normed = _layer_norm(x, w.norm1, w.norm1_bias)
    weight, bias = torch.cat([w.q, w.k, w.v]), torch.cat([w.q_bias, w.k_bias, w.v_bias])
    q, k, v = linear(normed, weight, bias).chunk(3, dim=-1)
    attended = F.scaled_dot_product_attention(_split(q, heads), _split(k, heads), _split(v, heads))
    attention = linear(attended.transpose(1, 2).flatten(2), w.out, w.out_bias)
    mlp = _vision_mlp(x + attention, w)
    return x + attention + mlp, k, v, attention + mlp


def reuse_layer(
    x: Tensor, w: VisionWeights, heads: int, ref_k: Tensor, ref_v: Tensor, ref_sum: Tensor, budget: Tensor
) -> Tensor:
    """A tower layer on the tokens whose keys changed most; the rest keeps the branches of the reference.

    All are `[frames, tokens, dim]`; row b of the reference tensors is the reference of frame b. The length of `budget`
    is the number of tokens to recompute: a size may vary in a compiled graph, a plain number would be compiled in.
    """
    dim, count = x.shape[-1], budget.shape[0]
    normed = _layer_norm(x, w.norm1, w.norm1_bias)
    k = linear(normed, w.k, w.k_bias)
    alike = F.cosine_similarity(k.detach().float(), ref_k.detach().float(), dim=-1)
    index = alike.topk(count, dim=1, largest=False, sorted=False).indices[..., None].expand(-1, -1, dim)
    picked = normed.gather(1, index)
    q = linear(picked, w.q, w.q_bias)
    v = ref_v.scatter(1, index, linear(picked, w.v, w.v_bias))
    attended = F.scaled_dot_product_attention(_split(q, heads), _split(k, heads), _split(v, heads))
    attention = linear(attended.transpose(1, 2).flatten(2), w.out, w.out_bias)
    middle = x.gather(1, index) + attention
    fresh = middle + _vision_mlp(middle, w)
    return (x + ref_sum).scatter(1, index, fresh)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: `x` is `[batch, heads, tokens, dim]`, `cos` and `sin` `[1 or batch, 1, tokens, dim]`."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


def text_layer(
    stream: Tensor, asked: Tensor, w: TextWeights, heads: int, kv_heads: int,
    turn: tuple[Tensor, Tensor, Tensor, Tensor], bias: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A decoder layer on `stream` `[clips, length, dim]` and `asked` `[clips, question tokens, dim]`.

    The stream is plainly causal, so it runs in the fast kernel. The questions of a clip stand side by side; what each
    of their tokens sees is in `bias` `[clips, 1, question tokens, length + question tokens]`.
    `turn` is the cosine and sine of the stream's positions, then of the questions'.
    """
    q, k, v = _heads_of(stream, w, heads, kv_heads, *turn[:2])
    seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _finish(stream, seen, w), _asked_layer(asked, k, v, w, heads, kv_heads, turn, bias)


def last_text_layer(
    stream: Tensor, asked: Tensor, w: TextWeights, heads: int, kv_heads: int,
    turn: tuple[Tensor, Tensor, Tensor, Tensor], bias: Tensor,
) -> Tensor:  # fmt: skip
    """`text_layer` where nobody needs the stream any more but for its keys and values: `asked` alone."""
    wide = linear(_rms_norm(stream, w.norm1), torch.cat([w.k, w.v]), torch.cat([w.k_bias, w.v_bias]))
    k, v = wide.chunk(2, dim=-1)
    k, v = (_widen(t, heads // kv_heads) for t in (rotate(_split(k, kv_heads), *turn[:2]), _split(v, kv_heads)))
    return _asked_layer(asked, k, v, w, heads, kv_heads, turn, bias)


def _heads_of(
    x: Tensor, w: TextWeights, heads: int, kv_heads: int, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    weight, offset = torch.cat([w.q, w.k, w.v]), torch.cat([w.q_bias, w.k_bias, w.v_bias])
    sizes = [w.q.shape[0], w.k.shape[0], w.v.shape[0]]
    q, k, v = linear(_rms_norm(x, w.norm1), weight, offset).split(sizes, dim=-1)
    q, k = rotate(_split(q, heads), cos, sin), rotate(_split(k, kv_heads), cos, sin)
    return q, _widen(k, heads // kv_heads), _widen(_split(v, kv_heads), heads // kv_heads)


def _widen(x: Tensor, times: int) -> Tensor:
    return x.repeat_interleave(times, dim=1)


def _asked_layer(
    asked: Tensor, k: Tensor, v: Tensor, w: TextWeights, heads: int, kv_heads: int,
    turn: tuple[Tensor, Tensor, Tensor, Tensor], bias: Tensor,
) -> Tensor:  # fmt: skip
    own_q, own_k, own_v = _heads_of(asked, w, heads, kv_heads, *turn[2:])
    k, v = torch.cat([k, own_k], dim=2), torch.cat([v, own_v], dim=2)
    return _finish(asked, F.scaled_dot_product_attention(own_q, k, v, attn_mask=bias), w)


def _finish(x: Tensor, attended: Tensor, w: TextWeights) -> Tensor:
    x = x + linear(attended.transpose(1, 2).flatten(2), w.out)
    normed = _rms_norm(x, w.norm2)
    return x + linear(F.silu(linear(normed, w.gate)) * linear(normed, w.up), w.down)


class Stream(NamedTuple):
    """The packed stream part of each clip."""

    embeddings: Tensor
    """`[clips, length, dim]`; what lies behind a clip's end is padding."""
    frame: Tensor
    """Frame of each packed token, int64 `[clips, length]`; -1 for the prefix, a large number for padding."""
    visual: Tensor
    """Visual token of each packed one, int64 `[clips, length]`, numbered over all frames; -1 where it is none."""


class Reading(NamedTuple):
    """What came of reading streams with questions."""

    answered: Tensor
    """Last hidden states of the question tokens, `[clips, questions, tokens, dim]`."""
    watched: Tensor
    """Hidden states of the stream two layers before the end, `[clips, length, dim]`."""
    found: Tensor
    """Those of the question tokens there, `[clips, questions, tokens, dim]`."""


CLOCK_HEADS = ("now", "born", "since")
"""What stream tokens learn to tell besides: the second of their frame, and of the frame in which what they show came,
and took its present look."""
SECONDS = 60


class Pocket(nn.Module):
    """The Hugging Face model, label heads that are not exported, and the training forward."""

    def __init__(self, sizes: PocketSizes, encoder: Encoder, vocabulary: int, label_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.label_sizes = label_sizes
        self.hf = LlavaOnevisionForConditionalGeneration(hf_config(sizes, encoder, vocabulary)).float()
        self.heads = nn.Linear(sizes.vision_dim, sum(label_sizes))
        self.stream_heads = nn.Linear(sizes.dim, len(CLOCK_HEADS) * SECONDS + 2 * (sizes.side // 2))
        self.evidence_heads = nn.Linear(sizes.dim, 2 * (SECONDS + 1))
        self.register_buffer("prefix", torch.tensor(encoder.prefix), persistent=False)
        self.pad = encoder.pad
        self._init()
        self._use(_LAYERS)

    @torch.no_grad()
    def _init(self) -> None:
        core = self.hf.model
        for name, p in self.named_parameters():
            if p.ndim == 1:
                p.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            elif p.ndim == 2:
                p.normal_(0, p.shape[1] ** -0.5)
            else:
                p.normal_(0, p[0].numel() ** -0.5)
        # Residual branches start small, so that the first steps see the patches and the words themselves.
        for name, p in self.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight")):
                p.mul_(0.3)
        core.vision_tower.embeddings.position_embedding.weight.normal_(0, 0.3)
        core.language_model.embed_tokens.weight.normal_(0, 1.0 / math.sqrt(self.sizes.dim))
        core.image_newline.normal_(0, 1.0 / math.sqrt(self.sizes.dim))

    def _use(self, layers: Sequence[Callable]) -> None:
        self.dense_layer, self.reuse_layer, self.text_layer, self.last_text_layer = layers

    def compile_layers(self) -> None:
        """Compile the layers, not the model: six layers share one graph, and shapes may vary along the batch."""
        torch._dynamo.config.recompile_limit = 64
        self._use([torch.compile(function) for function in _LAYERS])

    def share_compiled(self, other: "Pocket") -> None:
        """Use the layers that another model of the same sizes has compiled."""
        self._use((other.dense_layer, other.reuse_layer, other.text_layer, other.last_text_layer))

    @contextlib.contextmanager
    def eager(self) -> Iterator[None]:
        """Run layers uncompiled inside: graphs made for training would be compiled again without gradients."""
        saved = self.dense_layer, self.reuse_layer, self.text_layer, self.last_text_layer
        self._use(_LAYERS)
        try:
            yield
        finally:
            self._use(saved)

    def vision_weights(self) -> list[VisionWeights]:
        """Parameters of the tower's layers."""
        out = []
        for layer in self.hf.model.vision_tower.encoder.layers:
            a, m = layer.self_attn, layer.mlp
            parts = (layer.layer_norm1, a.q_proj, a.k_proj, a.v_proj, a.out_proj, layer.layer_norm2, m.fc1, m.fc2)
            out.append(VisionWeights(*(t for part in parts for t in (part.weight, part.bias))))
        return out

    def text_weights(self) -> list[TextWeights]:
        """Parameters of the decoder's layers."""
        out = []
        for layer in self.hf.model.language_model.layers:
            a, m = layer.self_attn, layer.mlp
            out.append(TextWeights(
                layer.input_layernorm.weight, a.q_proj.weight, a.q_proj.bias, a.k_proj.weight, a.k_proj.bias,
                a.v_proj.weight, a.v_proj.bias, a.o_proj.weight, layer.post_attention_layernorm.weight,
                m.gate_proj.weight, m.up_proj.weight, m.down_proj.weight,
            ))  # fmt: skip
        return out

    # ---------------------------------------------------------------------------------------------------- seeing

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Patch and position embedding: `[frames, 3, rows, cols]` to `[frames, tokens, dim]`."""
        embeddings, patch = self.hf.model.vision_tower.embeddings, self.sizes.patch
        # A convolution whose stride is its size is a matrix product over cut-out patches.
        cut = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        tokens = linear(
            cut.flatten(1, 2), embeddings.patch_embedding.weight.flatten(1), embeddings.patch_embedding.bias
        )
        return tokens + embeddings.position_embedding.weight.to(tokens.dtype)

    def encode(self, pixels: Tensor) -> Tensor:
        """The dense tower: `[frames, 3, rows, cols]` to `[frames, tokens, dim]`."""
        x = self.embed_patches(pixels)
        for w in self.vision_weights():
            _vary((x,))
            x = self.dense_layer(x, w, self.sizes.vision_heads)[0]
        return x

    def encode_cached(self, pixels: Tensor, interval: int, ratio: float) -> Tensor:
        """The tower under STC-Cacher: `[clips, frames, 3, rows, cols]` to `[clips, frames, tokens, dim]`.

        Every `interval`-th frame (0: only the first) is computed whole; `interval` must divide the number of frames.
        """
        clips, frames = pixels.shape[:2]
        interval = interval or frames
        assert frames % interval == 0, f"{interval} does not divide {frames} frames"
        x = self.embed_patches(pixels.flatten(0, 1)).unflatten(0, (clips * frames // interval, interval))
        budget = x.new_empty(max(1, int(ratio * x.shape[2] + 1e-9)))
        whole, rest = x[:, 0].contiguous(), x[:, 1:]
        spread, rest = rest.shape, rest.flatten(0, 1).contiguous()
        for w in self.vision_weights():
            _vary((whole,))
            whole, *reference = self.dense_layer(whole, w, self.sizes.vision_heads)
            if interval > 1:
                # With a fixed reference, frames between two refreshes do not depend on each other: all at once.
                wide = [t[:, None].expand(spread).flatten(0, 1).contiguous() for t in reference]
                _vary((rest, *wide, budget))
                rest = self.reuse_layer(rest, w, self.sizes.vision_heads, *wide, budget)
        return torch.cat([whole[:, None], rest.view(spread)], dim=1).reshape(clips, frames, *whole.shape[1:])

    def patch_logits(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Scores of the patch labels, from tower output `[..., tokens, dim]`."""
        return linear(hidden, self.heads.weight, self.heads.bias).float().split(self.label_sizes, dim=-1)

    def project(self, hidden: Tensor) -> Tensor:
        """Tower output `[frames, tokens, dim]` to decoder tokens `[frames, pooled tokens, dim]`.

        Pooling 16 x 16 to 8 x 8 by bilinear interpolation is the mean of 2 x 2, and commutes with the last linear map.
        """
        projector, side = self.hf.model.multi_modal_projector, self.sizes.side
        hidden = F.gelu(linear(hidden, projector.linear_1.weight, projector.linear_1.bias))
        pooled = hidden.unflatten(1, (side // 2, 2, side // 2, 2)).mean((2, 4)).flatten(1, 2)
        return linear(pooled, projector.linear_2.weight, projector.linear_2.bias)

    # --------------------------------------------------------------------------------------------------- reading

    def embed_text(self, ids: Tensor) -> Tensor:
        """`[..., dim]` of token ids."""
        return F.embedding(ids, self.hf.model.language_model.embed_tokens.weight)

    def pack(
        self, features: Tensor, keep: Tensor, clock: Tensor, shown: Tensor, length: int, said: Tensor | None = None
    ) -> Stream:
        """Lay the prefix and each frame's time and kept tokens side by side without gaps.

        `features` is `[clips, frames, tokens, dim]`, `keep` bool `[clips, frames, tokens]`, `clock` int64
        `[clips, frames, 2]` (time tokens), `shown` bool `[clips, frames]` (False: the frame is not there at all),
        `said` int64 `[clips, frames, words]` token ids of what stands behind a frame (-1: none).
        """
        clips, frames, tokens, dim = features.shape
        said = clock.new_zeros(clips, frames, 0) if said is None else said
        words = said.shape[2]
        prefix = self.embed_text(self.prefix).to(features.dtype).expand(clips, -1, -1)
        times, behind = (self.embed_text(ids.clamp(min=0)).to(features.dtype) for ids in (clock, said))
        flat = torch.cat([prefix, torch.cat([times, features, behind], dim=2).flatten(1, 2)], dim=1)
        present = torch.cat([torch.ones_like(shown)[..., None].expand(-1, -1, 2), keep, said >= 0], dim=2)
        present = present & shown[..., None]
        start = len(self.prefix)
        present = torch.cat([present.new_ones(clips, start), present.flatten(1)], dim=1)
        frame = torch.arange(frames, device=keep.device).repeat_interleave(tokens + 2 + words)
        frame = torch.cat([frame.new_full((start,), -1), frame]).expand(clips, -1)
        place = torch.where(present, present.cumsum(1) - 1, length).clamp(max=length)
        source = torch.arange(flat.shape[1], device=keep.device).expand(clips, -1)
        index = torch.zeros(clips, length + 1, dtype=torch.int64, device=keep.device).scatter(1, place, source)[
            :, :length
        ]
        ends = present.sum(1, keepdim=True)
        real = torch.arange(length, device=keep.device) < ends
        packed = flat.gather(1, index[..., None].expand(-1, -1, dim))
        numbers = torch.arange(frames * tokens, device=keep.device).unflatten(0, (frames, tokens))
        none = numbers.new_full((frames, 2 + words), -1)
        numbers = torch.cat([none[:, :2], numbers, none[:, 2:]], dim=1).flatten()
        numbers = torch.cat([numbers.new_full((start,), -1), numbers]).expand(clips, -1)
        visual = torch.where(real, numbers.gather(1, index), -1)
        return Stream(packed, torch.where(real, frame.gather(1, index), 1 << 30), visual)

    def stream_length(self, frames: int, keep: int) -> int:
        """Packed length that holds `frames` frames of `keep` tokens, rounded up to a multiple of 64."""
        return -(-(len(self.prefix) + frames * (keep + 2)) // 64) * 64

    def read(self, stream: Stream, ids: Tensor, asked: Tensor, hidden_frames: Tensor | None = None) -> Reading:
        """Hidden states of the question tokens and of the stream.

        `ids` is int64 `[clips, questions, tokens]` (question and answer; the closing newline embedding is put before
        them, and the result has a row for it), `asked` int64 `[clips, questions]` the last frame a question sees.
        `hidden_frames` bool `[clips, questions, frames]` marks frames that a question must not look at. A question
        sees the prefix, its frames and itself; its positions follow its last frame.
        """
        clips, questions, _ = ids.shape
        device, dtype = ids.device, stream.embeddings.dtype
        newline = self.hf.model.image_newline.expand(clips, questions, 1, -1)
        own = torch.cat([newline, self.embed_text(ids)], dim=2).to(dtype)
        size = own.shape[2]
        length = stream.embeddings.shape[1]
        visible = stream.frame[:, None] <= asked[..., None]
        ends = visible.sum(-1)
        if hidden_frames is not None:
            at = stream.frame.clamp(0, hidden_frames.shape[2] - 1)[:, None].expand(-1, questions, -1)
            visible = visible & ~(hidden_frames.gather(2, at) & (stream.frame[:, None] >= 0))
        inside = torch.ones(size, size, dtype=torch.bool, device=device).tril()
        inside = torch.block_diag(*[inside] * questions).expand(clips, -1, -1)
        mask = torch.cat([visible.repeat_interleave(size, dim=1), inside], dim=2)
        bias = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, float("-inf"))[:, None]
        positions = (ends[..., None] + torch.arange(size, device=device)).flatten(1)
        turn = (*self.rotary(torch.arange(length, device=device)[None]), *self.rotary(positions))
        x = watched = stream.embeddings
        y = found = own.flatten(1, 2)
        *weights, last = self.text_weights()
        for number, w in enumerate(weights, start=1):
            _vary((x, y, bias, turn[0], turn[1], turn[2], turn[3]), (x, turn[0], turn[1]), bias)
            x, y = self.text_layer(x, y, w, self.sizes.heads, self.sizes.kv_heads, turn, bias)
            if number <= max(1, self.sizes.layers - 2):
                watched, found = x, y
        _vary((x, y, bias, turn[0], turn[1], turn[2], turn[3]), (x, turn[0], turn[1]), bias)
        y = self.last_text_layer(x, y, last, self.sizes.heads, self.sizes.kv_heads, turn, bias)
        answered = _rms_norm(y, self.hf.model.language_model.norm.weight).unflatten(1, (questions, size))
        return Reading(answered, watched, found.unflatten(1, (questions, size)))

    def watch(self, stream: Stream) -> Tensor:
        """Last hidden states of the stream itself, `[clips, length, dim]`: what heads on a frame's last token see."""
        turn = self.rotary(torch.arange(stream.embeddings.shape[1], device=stream.embeddings.device)[None])
        x = stream.embeddings
        for w in self.text_weights():
            q, k, v = _heads_of(x, w, self.sizes.heads, self.sizes.kv_heads, *turn)
            x = _finish(x, F.scaled_dot_product_attention(q, k, v, is_causal=True), w)
        return _rms_norm(x, self.hf.model.language_model.norm.weight)

    def stream_logits(self, watched: Tensor) -> tuple[Tensor, ...]:
        """Scores of the clock heads, then of the row and the column, of stream tokens `[..., dim]`."""
        normed = _rms_norm(watched, torch.ones(watched.shape[-1], device=watched.device))
        scores = linear(normed, self.stream_heads.weight, self.stream_heads.bias).float()
        return scores.split([SECONDS] * len(CLOCK_HEADS) + [self.sizes.side // 2] * 2, dim=-1)

    def evidence_logits(self, found: Tensor) -> Tensor:
        """Scores `[..., 2, SECONDS + 1]` of the seconds in which the first and the last piece of evidence begin.

        `found` is `[..., dim]`, the states that the answer is read from, two layers before the end. The last class is
        that there is none.
        """
        normed = _rms_norm(found, torch.ones(found.shape[-1], device=found.device))
        return linear(normed, self.evidence_heads.weight, self.evidence_heads.bias).float().unflatten(-1, (2, -1))

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[clips, 1, tokens, head_dim]` of positions `[clips, tokens]`."""
        half = self.sizes.dim // self.sizes.heads // 2
        steps = torch.arange(half, device=positions.device, dtype=torch.float32) / half
        angle = positions[..., None].float() * self.sizes.theta**-steps
        angle = torch.cat([angle, angle], dim=-1)[:, None]
        return angle.cos(), angle.sin()

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, float32."""
        return linear(hidden, self.hf.model.language_model.embed_tokens.weight).float()


_LAYERS: tuple[Callable, ...] = (dense_layer, reuse_layer, text_layer, last_text_layer)


def _vary(batched: Sequence[Tensor], long: Sequence[Tensor] = (), bias: Tensor | None = None) -> None:
    """Tell the compiler which sizes change from batch to batch, so that it makes one graph and not one per shape."""
    for tensor in batched:
        if tensor.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    for tensor in long:
        torch._dynamo.maybe_mark_dynamic(tensor, tensor.ndim - 2)
    if bias is not None:
        torch._dynamo.maybe_mark_dynamic(bias, 3)


def count_parameters(model: Pocket) -> int:
    """Parameters that are exported."""
    return sum(p.numel() for p in model.hf.parameters())
