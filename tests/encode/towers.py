"""Tiny towers and frames for the encoder tests."""

import dataclasses

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from onlooker.models._siglip import embed, take_apart


def make_tower(kind="siglip", image_size=40, patch_size=8, dim=32, num_layers=3, seed=0):
    """A Hugging Face vision model with random weights wide enough that attention matters, and its parts."""
    sizes = {
        "hidden_size": dim,
        "intermediate_size": 2 * dim,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "siglip":
            module = SiglipVisionModel(SiglipVisionConfig(**sizes, vision_use_head=False))
        else:
            module = CLIPVisionModel(CLIPVisionConfig(**sizes))
        with torch.no_grad():
            for weight in module.parameters():
                weight.normal_(0, 0.15) if weight.ndim == 2 else weight.add_(torch.randn_like(weight), alpha=0.1)
    return module.eval(), take_apart(module)


def make_frames(module, num_frames, seed=0, change=0.3):
    """Embedded frames of one drifting stream, `[frames, tokens, dim]`: each changes some patches of the one before."""
    size = module.config.image_size
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.randn(3, size, size, generator=generator)]
    for _ in range(num_frames - 1):
        where = torch.rand(1, size // 8, size // 8, generator=generator).lt(change)
        where = where.repeat_interleave(8, 1).repeat_interleave(8, 2)
        new = torch.randn(3, size, size, generator=generator)
        drift = 0.1 * torch.randn(3, size, size, generator=generator)
        frames.append(torch.where(where, new, frames[-1] + drift))
    return embed(module, torch.stack(frames))


def run(method, tower, frames, state=None):
    """One stream frame by frame: outputs `[frames, tokens, dim]`."""
    state = method.new_state() if state is None else state
    return torch.cat([method.encode(tower, frame[None], [state]).hidden for frame in frames])


def regroup(tower, **changes):
    """The same tower with other declarations."""
    return dataclasses.replace(tower, **changes)
