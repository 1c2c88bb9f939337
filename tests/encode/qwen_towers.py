"""Tiny Qwen towers and frames for the encoder tests, and a plain STC-Cacher that works on the stock modules."""

import importlib

import torch
from tiny import make_qwen_network, make_qwen_tokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

FAMILIES = ["qwen2_5_vl", "qwen3_vl"]


def make_vision(family, seed=0, num_layers=3):
    """The seeing half of a tiny network of a family (layers with and without windows, or tapped ones)."""
    network = make_qwen_network(make_qwen_tokenizer(), family, num_layers, seed)
    return importlib.import_module(f"onlooker.models.{family}").Vision(network)


@torch.no_grad()
def moving_frames(vision, num_frames, size=(84, 140), seed=0, change=0.3):
    """Embedded frames of one drifting stream, `[frames, tokens, dim]`: each changes some blocks of the one before."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = size
    frames = [torch.randn(3, rows, cols, generator=generator)]
    for _ in range(num_frames - 1):
        where = torch.rand(1, rows // 28, cols // 28, generator=generator).lt(change)
        where = where.repeat_interleave(28, 1).repeat_interleave(28, 2)
        new = torch.randn(3, rows, cols, generator=generator)
        drift = 0.05 * torch.randn(3, rows, cols, generator=generator)
        frames.append(torch.where(where, new, frames[-1] + drift))
    return vision.embed_patches(torch.stack(frames))


class SlowQwenCacher:
    """One stream, four tensors a layer, Python loops over groups of four; windows told by the tokens' own places."""

    def __init__(self, vision, rows, cols, interval, ratio):
        self.blocks, self.config = vision.module.blocks, vision.config
        self.interval, self.ratio, self.frame, self.kept = interval, ratio, 0, {}
        places = [
            (r + i, c + j) for r in range(0, rows, 2) for c in range(0, cols, 2) for i in range(2) for j in range(2)
        ]
        self.angles = vision.module.rotary_pos_emb(torch.zeros(1), torch.tensor(places))
        side = getattr(self.config, "window_size", 0) // 14 or 10**6
        self.window = [(r // side, c // side) for r, c in places]

    def encode(self, hidden):  # [tokens, dim]
        refresh = self.frame == 0 or bool(self.interval and self.frame % self.interval == 0)
        self.frame += 1
        for number, block in enumerate(self.blocks):
            hidden = self._layer(number, block, hidden, refresh)
        return hidden

    def _layer(self, number, block, x, refresh):
        h = block.norm1(x)
        q, k, v = block.attn.qkv(h).chunk(3, -1)
        chosen = set(range(len(x)))
        if not refresh:
            k_ref, v_ref, a_ref, m_ref = self.kept[number]
            alike = [
                sum(float(torch.cosine_similarity(k[t], k_ref[t], dim=0)) for t in range(g, g + 4))
                for g in range(0, len(x), 4)
            ]
            count = max(1, max(1, int(self.ratio * len(x) + 1e-9)) // 4)
            groups = sorted(range(len(alike)), key=lambda g: alike[g])[:count]
            chosen = {4 * g + t for g in groups for t in range(4)}
            v = torch.stack([v[t] if t in chosen else v_ref[t] for t in range(len(x))])
        a = block.attn.proj(self._attend(number, block.attn, q, k, v))
        if refresh:
            m = block.mlp(block.norm2(x + a))
            self.kept[number] = (k, v, a, m)
            return x + a + m
        rows = []
        for t in range(len(x)):
            if t in chosen:
                y = x[t] + a[t]
                rows.append(y + block.mlp(block.norm2(y)))
            else:
                rows.append(x[t] + a_ref[t] + m_ref[t])
        return torch.stack(rows)

    def _attend(self, number, attention, q, k, v):
        heads = (-1, attention.num_heads, attention.head_dim)
        q, k = apply_rotary_pos_emb_vision(q.view(heads), k.view(heads), *self.angles)
        scores = torch.einsum("qhd,khd->hqk", q, k) * attention.head_dim**-0.5
        if number not in getattr(self.config, "fullatt_block_indexes", range(99)):
            apart = [[one != other for other in self.window] for one in self.window]
            scores = scores.masked_fill(torch.tensor(apart), -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.view(heads)).flatten(1)
