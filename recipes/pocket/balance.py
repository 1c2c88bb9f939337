"""Weigh the answers of Pocket World's levels: `python -m recipes.pocket.balance --write`."""

import argparse
import random
from collections import Counter, defaultdict
from pathlib import Path

from onlooker.world import LEVELS, balance, balance_weights, make_episode

FORMS = {
    "repetition": ("blinks", "changes"), "since": ("came_since", "came_sofar"), "place": ("last_across", "last_updown"),
    "glance": ("across", "updown"), "identity": ("older", "blinker"),
}  # fmt: skip
"""Tasks and their forms whose answers are not equally likely by themselves."""
FILE = Path(balance_weights.__file__)
_LEAST_SHARE = 0.015


def measure(level: str, episodes: int, first_seed: int) -> dict[str, Counter[str]]:
    """How often each answer comes up: form to counts of "stretch/answer"."""
    rng, duration = random.Random(f"balance/{first_seed}"), LEVELS[level].duration_s
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for seed in range(first_seed, first_seed + episodes):
        episode = make_episode(seed, "train", duration, level=level)
        for task, forms in FORMS.items():
            for part in range(len(balance.BORDERS_S) + 1):
                low, high = (1.5, *balance.BORDERS_S)[part], (*balance.BORDERS_S, 1e9)[part]
                if low < duration - 1:
                    at = rng.uniform(low, min(high, duration - 0.1))
                    for _ in range(6 if task == "identity" else 1):
                        record = episode.ask(task, at, rng)
                        if record is not None and record.meta["form"] in forms:
                            found[record.meta["form"]][f"{part}/{record.answer}"] += 1
                            break
                        at = rng.uniform(low, min(high, duration - 0.1))
    return found


def improve(weights: dict[str, dict[str, float]], found: dict[str, Counter[str]], power: float) -> None:
    """Move weights towards equal shares of all answers that are not too rare."""
    for form, counts in found.items():
        rows = weights.setdefault(form, {})
        for part in {key.split("/")[0] for key in counts}:
            mine = {key: num for key, num in counts.items() if key.split("/")[0] == part}
            total = sum(mine.values())
            kept = {
                key: num for key, num in mine.items()
                if rows.get(key, 0.0 if rows and form in ("blinks", "changes") else 1.0) and num >= _LEAST_SHARE * total
            }  # fmt: skip
            new = {key: rows.get(key, 1.0) * (total / num) ** power for key, num in kept.items()}
            top = max(new.values(), default=1.0)
            for key in mine:
                rows[key] = round(new.get(key, 0.0) / top, 3)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1500, help="episodes of each level and turn")
    parser.add_argument("--turns", type=int, default=4, help="how often to measure and improve")
    parser.add_argument("--write", action="store_true", help="write the weights into the package")
    given = parser.parse_args(argv)
    weights: dict[str, dict[str, dict[str, float]]] = {}
    balance.WEIGHTS = weights
    for level in LEVELS:
        weights[level] = {}
        for turn in range(given.turns):
            found = measure(level, given.episodes, first_seed=10_000_000 + turn * given.episodes)
            improve(weights[level], found, 0.9 if turn < 2 else 0.6)
            print(level, turn, {form: sum(counts.values()) for form, counts in found.items()}, flush=True)
    if given.write:
        lines = ['"""Written by `python -m recipes.pocket.balance --write`: see `balance.weight`."""\n', "WEIGHTS = {"]
        for level, forms in weights.items():
            lines.append(f'    "{level}": {{')
            for form, rows in sorted(forms.items()):
                lines.append(f'        "{form}": {{')
                for part in sorted({key.split("/")[0] for key in rows}):
                    mine = {k: v for k, v in sorted(rows.items()) if k.split("/")[0] == part}
                    lines.append("            " + " ".join(f'"{key}": {value},' for key, value in mine.items()))
                lines.append("        },")
            lines.append("    },")
        FILE.write_text("\n".join([*lines, "}  # fmt: skip"]) + "\n")


if __name__ == "__main__":
    main()
