"""A rate is held, whatever the stream does; a window is what the method within does with it."""

import pytest
import torch
from test_clip_methods import clip, given_out, places

from onlooker.compress import DTD, FlashVID, Rate, Uniform, Windowed
from onlooker.core import registry
from onlooker.core.errors import InputError
from onlooker.core.tokens import VisualTokens


def stream(seed: int, frames: int, fps: float, tokens: int = 48) -> list[VisualTokens]:
    """A scene that is quiet and busy in turns, every place at its own pace."""
    make = torch.Generator().manual_seed(seed)
    base, shown = torch.randn(tokens, 16, generator=make), []
    for number in range(frames):
        busy = 1.0 if (number // 60) % 2 else 0.25
        base = base + busy * torch.rand(tokens, 1, generator=make) ** 2 * torch.randn(tokens, 16, generator=make)
        base = base / base.norm(dim=1, keepdim=True)
        shown.append(VisualTokens.of_frame(base, (6, 8), number, number / fps))
    return shown


@pytest.mark.parametrize("inner", [DTD(), DTD(anchored=True, refresh=50), DTD(threshold=0.99)])
@pytest.mark.parametrize(("rate", "fps"), [(8.0, 1.0), (30.0, 2.0), (20.0, 1.0)])
def test_a_rate_is_held_from_any_threshold(inner: DTD, rate: float, fps: float) -> None:
    frames = stream(1, 460, fps)
    method = Rate(inner, tokens_per_s=rate)
    state = method.new_state()
    kept = [len(method.compress(tokens, state)) for tokens in frames]
    seconds = 360 / fps
    assert sum(kept[100:]) / seconds == pytest.approx(rate, rel=0.05)


def test_a_threshold_alone_holds_no_rate() -> None:
    """In quiet and in busy minutes, and from one threshold to the next, it keeps several times as much."""
    frames, counts = stream(1, 240, 1.0), []
    for inner in (DTD(), DTD(threshold=0.9)):
        state = inner.new_state()
        kept = [len(inner.compress(tokens, state)) for tokens in frames]
        counts += [sum(kept[1:60]), sum(kept[60:120]), sum(kept[120:180]), sum(kept[180:])]
    assert max(counts) > 3 * min(counts)


def test_a_still_scene_keeps_nothing_and_is_followed_again() -> None:
    method = Rate(DTD(), tokens_per_s=10.0)
    state, frames = method.new_state(), stream(2, 260, 1.0)
    still = [VisualTokens.of_frame(frames[80].features, (6, 8), n, float(n)) for n in range(80, 120)]
    later = [VisualTokens.of_frame(one.features, (6, 8), n, float(n)) for n, one in enumerate(frames[80:], 120)]
    kept = [len(method.compress(tokens, state)) for tokens in [*frames[:80], *still, *later]]
    assert sum(kept[81:120]) == 0
    assert sum(kept[180:280]) / 100 == pytest.approx(10.0, rel=0.15)


def test_what_has_no_threshold_is_refused() -> None:
    for inner in (Uniform(), FlashVID(), DTD(keep_ratio=0.5)):
        with pytest.raises(InputError, match="threshold"):
            Rate(inner)
    with pytest.raises(InputError):
        Rate(tokens_per_s=0)


@pytest.mark.parametrize("frames", [1, 4, 8])
def test_a_window_is_that_of_the_method_within(frames: int) -> None:
    """By either way of writing it, and from text."""
    shown = clip(4, frames)
    by_text = registry.make("compressor", f"windowed(flashvid:keep_ratio=0.2):frames={frames}")
    assert by_text == Windowed(FlashVID(keep_ratio=0.2), frames=frames) and by_text.lookahead == frames - 1
    one, two = given_out(by_text, shown), given_out(FlashVID(keep_ratio=0.2, frames=frames), shown)
    assert places(one) == places(two) and torch.equal(one.features, two.features)
    assert by_text.needs == {"saliency"} and by_text.less() == Windowed(FlashVID(keep_ratio=0.1), frames=frames)
    with pytest.raises(InputError, match="several frames together"):
        registry.make("compressor", "windowed(dtd)")
