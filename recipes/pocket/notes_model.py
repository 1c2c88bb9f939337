"""The model that learns notes: a frozen one, low-rank adapters of its decoder, and rows that tell of a frame's end."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration

from onlooker.models import _adapter
from onlooker.models._loading import load_network
from onlooker.models._signals import FILE as HEADS_FILE
from recipes.pocket.evaluate import LABEL_SIZES
from recipes.pocket.model import Pocket, PocketSizes, Stream, TextWeights, _rms_norm, _vary
from recipes.pocket.responses import HEADS
from recipes.pocket.tokenizer import MAX_VOCABULARY, PAD, Encoder
from recipes.pocket.told import NEWLINE

PLACES = ("q", "k", "v", "out", "gate", "up", "down")
"""The matrices of a layer that are adapted."""


class Adapted(Pocket):
    """A frozen model, low-rank adapters of its decoder, and rows that tell of a frame's last token."""

    def __init__(self, sizes: PocketSizes, encoder: Encoder, rank: int) -> None:
        super().__init__(sizes, encoder, MAX_VOCABULARY, tuple(LABEL_SIZES.values()))
        self.requires_grad_(False)
        self.down_maps, self.up_maps = nn.ParameterList(), nn.ParameterList()
        for w in Pocket.text_weights(self):
            for place in PLACES:
                rows, cols = getattr(w, place).shape
                self.down_maps.append(nn.Parameter(torch.randn(rank, cols) * cols**-0.5))
                self.up_maps.append(nn.Parameter(torch.zeros(rows, rank)))
        self.tell = nn.Linear(sizes.dim, len(HEADS) + 1)
        """Rows of the heads, then of silence."""
        self.silence = encoder.encode(PAD)[0]
        self.active = True

    @property
    def learnt(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def text_weights(self) -> list[TextWeights]:
        """The decoder's layers with their adapters added."""
        layers = super().text_weights()
        if not self.active:
            return layers
        pairs = iter(zip(self.up_maps, self.down_maps, strict=True))
        return [w._replace(**{p: getattr(w, p) + next_map(pairs) for p in PLACES}) for w in layers]

    def read_units(self, stream: Stream, batch: dict[str, Tensor], frames: int) -> tuple[Tensor, Tensor]:
        """Last hidden states of the units' tokens `[clips, tokens, dim]`, and of every frame's last `[clips, frames,
        dim]`.

        A unit sees the prefix, the frames that it may, and itself; its positions follow those of its last frame.
        """
        ids, unit, place = (batch[name].long() for name in ("ids", "unit", "place"))
        asked, since = batch["asked"].long()[..., None], batch["since"].long()[..., None]
        newline = self.hf.model.image_newline.to(stream.embeddings.dtype)
        own = self.embed_text(ids).to(stream.embeddings.dtype)
        y = torch.where((ids == NEWLINE)[..., None], newline, own)
        frame = stream.frame[:, None]
        before = frame <= asked
        visible = before & ((frame >= since) | (frame < 0))
        number = torch.arange(ids.shape[1], device=ids.device)
        inside = (unit[:, :, None] == unit[:, None]) & (number <= number[:, None])
        bias = _bias(torch.cat([visible, inside], dim=2), stream.embeddings.dtype)
        length = stream.embeddings.shape[1]
        positions = before.sum(-1) + place
        turn = (*self.rotary(torch.arange(length, device=ids.device)[None]), *self.rotary(positions))
        x = stream.embeddings
        *weights, last = self.text_weights()
        for w in weights:
            _vary((x, y, bias, *turn))
            x, y = self.text_layer(x, y, w, self.sizes.heads, self.sizes.kv_heads, turn, bias)
        # In the last layer frames' last tokens are further words, whose keys and values stand in the stream.
        ends = frame_ends(stream, frames)
        rows = torch.cat([y, x.gather(1, ends[..., None].expand(-1, -1, x.shape[2]))], dim=1)
        seen = torch.arange(length, device=ids.device) <= ends[..., None]
        nothing = inside.new_zeros(len(ids), frames, inside.shape[2])
        below = _bias(torch.cat([seen, nothing], dim=2), bias.dtype)
        wide = torch.cat([bias, below], dim=2)
        wide = torch.cat([wide, wide.new_full((*wide.shape[:3], frames), -torch.inf)], dim=3)
        turn = (*turn[:2], *self.rotary(torch.cat([positions, ends], dim=1)))
        _vary((x, rows, wide, *turn))
        out = self.last_text_layer(x, rows, last, self.sizes.heads, self.sizes.kv_heads, turn, wide)
        out = _rms_norm(out, self.hf.model.language_model.norm.weight)
        return out[:, : ids.shape[1]], out[:, ids.shape[1] :]


def next_map(pairs: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """What the next adapter adds to its matrix."""
    up, down = next(pairs)
    return up @ down


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)[:, None]


def frame_ends(stream: Stream, frames: int) -> Tensor:
    """Place of every frame's last visual token, int64 `[clips, frames]`."""
    place = torch.arange(stream.frame.shape[1], device=stream.frame.device).expand_as(stream.frame)
    where = torch.where(stream.visual >= 0, stream.frame, frames)
    found = torch.zeros(len(place), frames + 1, dtype=torch.int64, device=place.device)
    return found.scatter_reduce(1, where, place, "amax")[:, :frames]


def load(folder: Path, rank: int, device: torch.device, sizes: PocketSizes | None = None) -> tuple[Adapted, Encoder]:
    """An exported model with adapters that change nothing yet."""
    encoder = Encoder()
    model = Adapted(sizes or PocketSizes(), encoder, rank)
    network = load_network(LlavaOnevisionForConditionalGeneration, folder, torch.float32, torch.device("cpu"))
    model.hf.load_state_dict(network.state_dict())
    return model.to(device), encoder


_MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def adapted_names(model: Adapted) -> list[str]:
    """The adapted matrices, as an exported model names them, in the order of the adapters."""
    return [f"language_model.model.layers.{n}.{name}.weight" for n in range(model.sizes.layers) for name in _MATRICES]


@torch.no_grad()
def begin_with(model: Adapted, folder: Path) -> None:
    """Take the adapters and heads that `write` left. Raises `ValueError` for those of another rank or model."""
    maps, held = _adapter.unpack(load_file(folder / _adapter.FILE)), load_file(folder / HEADS_FILE)
    for name, up, down in zip(adapted_names(model), model.up_maps, model.down_maps, strict=True):
        if name not in maps or maps[name][0].shape != up.shape:
            raise ValueError(f"{folder} has adapters of another rank or model: {name}")
        up.copy_(maps[name][0])
        down.copy_(maps[name][1])
    for n, name in enumerate((*HEADS, "silence")):
        model.tell.weight[n] = held[f"{name}.weight"][0].float()
        model.tell.bias[n] = held[f"{name}.bias"][0].float()


def write(model: Adapted, folder: Path) -> None:
    """The adapter in eight bits, and the rows of heads and silence."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = zip(adapted_names(model), model.up_maps, model.down_maps, strict=True)
    maps = {name: (up.detach().cpu(), down.detach().cpu()) for name, up, down in pairs}
    save_file(_adapter.pack(maps), folder / _adapter.FILE, metadata={"format": "pt"})
    rows, bias = model.tell.weight.detach().half().cpu(), model.tell.bias.detach().half().cpu()
    held = {}
    for n, name in enumerate((*HEADS, "silence")):
        held |= {f"{name}.weight": rows[n : n + 1].contiguous(), f"{name}.bias": bias[n : n + 1].contiguous()}
    save_file(held, folder / HEADS_FILE)
