"""Triton kernel of rows that are weighted sums of a few others, such as a smaller grid's.

Imported only where Triton is there; `pooled` launches it, and its plain form says what it must equal.
"""

import triton
import triton.language as tl


@triton.jit
def mix_rows(rows, places, weights, out, tokens, outputs, dim, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    """One output row of one stream, summed in float32. Grid (outputs, streams)."""
    place, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < dim
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for tap in tl.static_range(TAPS):  # pyright: ignore[reportGeneralTypeIssues]
        row = stream * tokens + tl.load(places + place * TAPS + tap)
        value = tl.load(rows + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
        total += value * tl.load(weights + place * TAPS + tap)
    tl.store(out + (stream * outputs + place) * dim + cols, total.to(out.dtype.element_ty), mask=inside)
