"""Transformers' own model at one question: what it costs where nothing of the video is kept between questions."""

import statistics
import time
from typing import TYPE_CHECKING, Any

from onlooker.cli.loads import pictures

if TYPE_CHECKING:
    from onlooker.core.contracts import VideoModel

QUESTION_TOKENS = 24
TRIES = 3


def stock_question(model: "VideoModel", name: str, dtype: str, tokens: int, answer_tokens: int) -> dict[str, Any]:
    """`generate` of a network as Transformers makes it, over a video of as many whole frames as so many tokens are:
    milliseconds to the first token and to the last, medians. Raises `ModelError` for families other than LLaVA's."""
    import torch

    from onlooker.models import stock_network

    device = model.spec.device
    network = stock_network(name, dtype, str(device))
    config = network.config
    shown = pictures(24)
    with torch.no_grad():
        # What a second frame adds is a frame; the end of a video is one token more, which some versions add later.
        one, two = (torch.stack(model.preprocess(shown[:count]))[None].to(network.dtype) for count in (1, 2))
        of_one, of_two = (network.model.get_video_features(some).pooler_output for some in (one, two))
        of_frame = of_two.flatten(0, -2).shape[0] - of_one.flatten(0, -2).shape[0]
    frames = max(1, tokens // of_frame)
    pixels = torch.stack(model.preprocess((shown * (1 + frames // 24))[:frames]))[None].to(network.dtype)
    video = config.video_token_index if hasattr(config, "video_token_index") else config.video_token_id
    ids = torch.full((1, frames * of_frame + 1 + QUESTION_TOKENS), 1, dtype=torch.int64, device=device)
    ids[:, 1 : 1 + frames * of_frame + 1] = video
    spent: dict[int, list[float]] = {1: [], answer_tokens: []}
    for _ in range(TRIES):
        for count, times in spent.items():
            began = time.perf_counter()
            network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values_videos=pixels,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append((time.perf_counter() - began) * 1000)
    first, whole = (statistics.median(times) for times in spent.values())
    return {
        "frames": frames,
        "context_tokens": ids.shape[1],
        "first_token_ms": first,
        "answer_ms": whole,
        "answer_tokens": answer_tokens,
    }
