"""Keys and values in 4 bits: keys by channel, in groups of tokens, and values by token.

After KIVI (Liu et al., ICML 2024, arXiv 2402.02750): asymmetric whole numbers. Changed: a block is encoded once, when
it enters the tier, instead of a window of recent tokens that stays as it is; keys are rotated already.
"""

from dataclasses import dataclass
from typing import ClassVar

from onlooker.codecs._integers import Integers


@dataclass(frozen=True)
class Int4(Integers):
    """A little more than a quarter of the bytes of 16 bits."""

    bits: ClassVar[int] = 4
