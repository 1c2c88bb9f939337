"""Parts of clips in which places stand still, found for all clips at once by dynamic programming."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from onlooker.compress._clip import Parts


def divided(steps: Tensor) -> Parts:
    """The division of each clip into parts, of the greatest gain: places that are the same in all steps of a part
    (bool `[clips, frames - 1, tokens]`), times its number of steps; of equal gains the longest last part."""
    clips, frames = steps.shape[0], steps.shape[1] + 1
    place = torch.arange(frames, device=steps.device)
    # A part from `first` up to step t stands still where no step from `first` to t differs.
    same = (_differed(steps)[:, None] < place[:-1, None, None]).sum(3)
    table = same * (place[None, :-1] + 1 - place[:-1, None]).clamp_min(0)
    gains, since = torch.zeros(clips, 1, dtype=torch.int64, device=steps.device), []
    for end in range(1, frames + 1):
        # What was best up to each frame, and what a part from it to here gains; nothing, if it is one frame.
        here = gains + pad(table[:, : end - 1, end - 2], (0, 1)) if end > 1 else gains
        since.append(here.argmax(1, keepdim=True))
        gains = torch.cat([gains, here.amax(1, keepdim=True)], 1)
    came = torch.cat([torch.zeros_like(since[0]), *since], 1)
    opens = torch.zeros(clips, frames, dtype=torch.bool, device=steps.device)
    at = torch.full_like(since[0], frames)
    for _ in range(frames):
        at = came.gather(1, at)
        opens = opens.scatter(1, at, True)
    return Parts.opened(opens)


def _differed(steps: Tensor) -> Tensor:
    """Up to each step, the last one in which a place was not the same, -1 where there is none; int64
    `[clips, frames - 1, tokens]`."""
    place = torch.arange(steps.shape[1], device=steps.device)[:, None]
    return place.expand(steps.shape).masked_fill(steps, -1).cummax(1).values


def stands_still(steps: Tensor, parts: Parts) -> Tensor:
    """Places that are the same in all steps of their part, bool `[frames, tokens]`; not in parts of one frame."""
    clips, frames = steps.shape[0], steps.shape[1] + 1
    if frames == 1:
        return steps.new_zeros(clips, steps.shape[2])
    first = (parts.first % frames).view(clips, frames, 1)
    last = first + parts.length.view(clips, frames, 1) - 2
    differed = _differed(steps).gather(1, last.clamp_min(0).expand(-1, -1, steps.shape[2]))
    return ((differed < first) & (last >= first)).flatten(0, 1)
