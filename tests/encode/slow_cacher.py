"""The published STC-Cacher written plainly from its specification: one stream, four tensors a layer, Python loops."""

import torch


class SlowCacher:
    """Works on the Hugging Face modules themselves, and is as slow and as literal as it can be."""

    def __init__(self, layers, interval, ratio):
        self.layers, self.interval, self.ratio = layers, interval, ratio
        self.frame, self.kept = 0, {}

    def encode(self, hidden):  # [tokens, dim]
        refresh = self.frame == 0 or bool(self.interval and self.frame % self.interval == 0)
        self.frame += 1
        for number, layer in enumerate(self.layers):
            hidden = self._whole(number, layer, hidden) if refresh else self._selective(number, layer, hidden)
        return hidden

    def _whole(self, number, layer, x):
        attention = layer.self_attn
        h = layer.layer_norm1(x)
        q, k, v = attention.q_proj(h), attention.k_proj(h), attention.v_proj(h)
        a = attention.out_proj(self._attend(attention, q, k, v))
        y = x + a
        m = layer.mlp(layer.layer_norm2(y))
        self.kept[number] = (k, v, a, m)
        return y + m

    def _selective(self, number, layer, x):
        attention = layer.self_attn
        k_ref, v_ref, a_ref, m_ref = self.kept[number]
        h = layer.layer_norm1(x)
        k = attention.k_proj(h)
        alike = [float((k[t] @ k_ref[t] / (k[t].norm() * k_ref[t].norm())).detach()) for t in range(len(x))]
        count = max(1, min(len(x), int(self.ratio * len(x) + 1e-9)))
        chosen = sorted(range(len(x)), key=lambda t: alike[t])[:count]
        v = torch.stack([attention.v_proj(h[t]) if t in chosen else v_ref[t] for t in range(len(x))])
        rows = []
        for t in range(len(x)):
            a = attention.out_proj(self._attend(attention, attention.q_proj(h[t : t + 1]), k, v))[0]
            y = x[t] + (a if t in chosen else a_ref[t])
            m = layer.mlp(layer.layer_norm2(y)) if t in chosen else m_ref[t]
            rows.append(y + m)
        return torch.stack(rows)

    def _attend(self, attention, q, k, v):
        heads, size = attention.num_heads, attention.head_dim
        out = []
        for n in range(heads):
            part = slice(n * size, (n + 1) * size)
            weights = torch.softmax(q[:, part] @ k[:, part].T * size**-0.5, dim=-1)
            out.append(weights @ v[:, part])
        return torch.cat(out, dim=-1)
