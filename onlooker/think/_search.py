"""Which of many notes a question reads: the lines that share its rarer words, and what was noted around them.

Recall by the words of the question, as every text search has it (inverse document frequencies), and by closeness in
time to what was recalled (the contiguity buffer of EM-LLM, arXiv 2407.09450, with notes in place of keys and values):
what came right before or after a thing has none of the question's words, and notes of one stretch of time agree about
the minute, where notes of all hours make a small model answer with another's (`docs/log.md`).
"""

import math
import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"[^\W_]+")
FOUND_SHARE = 0.75
"""Share of the budget for notes that match; the rest is for those around them."""


def words_of(text: str) -> set[str]:
    """Its words, in lower case and without the s of a plural."""
    found = _WORD.findall(text.casefold())
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in found}


def chosen(texts: Sequence[str], costs: Sequence[int], question: str, most: int) -> list[int]:
    """Numbers of the notes to read, ascending, of no more than `most` tokens together.

    The best matches come first, up to `FOUND_SHARE` of the budget (see `matches`); the rest goes to the notes next to
    them, the nearer before the farther and the newer before the older; where nothing matches, to the newest.
    """
    if sum(costs) <= most:
        return list(range(len(texts)))
    taken: set[int] = set()
    left = most
    for n in matches(texts, question):
        if costs[n] <= left - (1 - FOUND_SHARE) * most:
            taken.add(n)
            left -= costs[n]
    around = [-math.inf, *(sorted(taken) or [len(texts)]), math.inf]

    def away(n: int) -> tuple[float, int]:
        place = bisect(around, n)
        return min(n - around[place - 1], around[place] - n), -n

    for n in sorted(set(range(len(texts))) - taken, key=away):
        if costs[n] > left:
            break
        taken.add(n)
        left -= costs[n]
    return sorted(taken)


def matches(texts: Sequence[str], question: str) -> Iterator[int]:
    """Numbers of the notes that have words of a question, the best first, none twice.

    A note is as good as its best line: the sum of the inverse document frequencies, over lines, of the words it shares
    with the question. After the best ones, which are as good as each other, come the best for the words that these have
    not, and so on: of two things that are asked about, both are found. Of equally good ones the newest and the oldest
    take turns.
    """
    wanted = words_of(question)
    lines = [[words_of(line) & wanted for line in text.splitlines()] for text in texts]
    common = Counter(word for note in lines for line in note for word in line)
    number, given = sum(map(len, lines)), set[int]()
    # A word that every line has tells nothing.
    worth = {word: math.log(number / times) for word, times in common.items() if times < number}
    while worth:
        scores = [[sum(worth.get(word, 0.0) for word in line) for line in note] for note in lines]
        best = max(max(note, default=0.0) for note in scores) - 1e-9
        equal = [n for n, note in enumerate(scores) if max(note, default=0.0) >= best]
        for n in equal:
            for line, score in zip(lines[n], scores[n], strict=True):
                for word in line if score >= best else ():
                    worth.pop(word, None)
        equal = [n for n in equal if n not in given]
        given.update(equal)
        while equal:
            yield equal.pop()
            equal.reverse()
