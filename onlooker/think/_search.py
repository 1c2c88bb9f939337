"""Which of many notes a question reads: those that share its rarer words, then the newest, in a budget of tokens."""

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")
FOUND_SHARE = 0.75
"""Share of the budget for notes that match; the rest is for the newest."""


def words_of(text: str) -> set[str]:
    """Its words, in lower case and without the s of a plural."""
    found = _WORD.findall(text.casefold())
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in found}


def chosen(texts: Sequence[str], costs: Sequence[int], question: str, most: int) -> list[int]:
    """Numbers of the notes to read, ascending, of no more than `most` tokens together.

    A note scores the sum of the inverse document frequencies of the question's words that it has. Notes of a score
    above nothing come first, the best before the others and the newer before the older, up to `FOUND_SHARE` of the
    budget; the rest goes to the newest.
    """
    if sum(costs) <= most:
        return list(range(len(texts)))
    wanted, known = words_of(question), [words_of(text) for text in texts]
    common = Counter(word for words in known for word in words & wanted)
    # A word that every note has tells nothing.
    worth = {word: math.log(len(texts) / number) for word, number in common.items()}
    scores = [sum(worth[word] for word in words & wanted) for words in known]
    ranked = sorted(range(len(texts)), key=lambda n: (-scores[n], -n))
    taken: set[int] = set()
    left = most
    for n in ranked:
        if scores[n] > 1e-9 and costs[n] <= left - (1 - FOUND_SHARE) * most:
            taken.add(n)
            left -= costs[n]
    for n in reversed(range(len(texts))):
        if n in taken:
            continue
        if costs[n] > left:
            break
        taken.add(n)
        left -= costs[n]
    return sorted(taken)
