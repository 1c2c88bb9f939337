"""Triton kernel of picks one after the other, each the farthest from all before it.

Imported only where Triton is there; `picks` launches it, and its plain form says what it must equal.
"""

import triton
import triton.language as tl


@triton.jit
def farthest(distance, away, order, tokens, count, BLOCK: tl.constexpr):
    """A program picks in one frame; what each candidate is away from the picks so far stays in registers."""
    frame = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    there = place < tokens
    far = tl.load(away + frame * tokens + place, mask=there, other=-2.0)
    points = tl.full((BLOCK,), 0, tl.int32)
    for number in range(count):
        pick = tl.argmax(far, axis=0)
        points = tl.where(place == pick, count - number, points)
        row = tl.load(distance + (frame * tokens + pick) * tokens + place, mask=there, other=-2.0)
        far = tl.where(number == 0, row, tl.minimum(far, row))
        far = tl.where(points > 0, -1.0, far)
        far = tl.where(there, far, -2.0)
    tl.store(order + frame * tokens + place, points.to(tl.float32), mask=there)
