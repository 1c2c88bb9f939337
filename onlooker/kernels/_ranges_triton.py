"""Triton kernel that copies ranges of bytes from and to any addresses the device can reach.

Imported only where Triton is there; `ranges` launches it, and its plain form says what it must equal.
"""

import triton
import triton.language as tl


@triton.jit
def copy_ranges(table, PIECE: tl.constexpr, UNIT: tl.constexpr):
    """One piece of a range: source, target and length in bytes. Grid (ranges, pieces). UNIT 16 promises that all three
    are multiples of it; 1 promises nothing."""
    entry, piece = table + tl.program_id(0) * 3, tl.program_id(1)
    source, target, size = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    if UNIT == 16:
        read = tl.multiple_of(source.to(tl.pointer_type(tl.int64)), 16)
        write = tl.multiple_of(target.to(tl.pointer_type(tl.int64)), 16)
        at = piece * (PIECE // 8) + tl.arange(0, PIECE // 8)
        there = at < size // 8
        tl.store(write + at, tl.load(read + at, mask=there, other=0), mask=there)
    else:
        read, write = source.to(tl.pointer_type(tl.uint8)), target.to(tl.pointer_type(tl.uint8))
        at = piece * PIECE + tl.arange(0, PIECE)
        there = at < size
        tl.store(write + at, tl.load(read + at, mask=there, other=0), mask=there)
