"""Map the Flow on a built-in model: which attention edges may go is found on some questions and judged on others.

    python -m benchmarks.flow_line --device cuda:0 --out rows.jsonl

`onlooker bench flow` cuts edges and tells on the same questions what is lost. Here the cut is chosen on one set of
clips: layer by layer of every edge class, in the order of what each costs alone, one more is cut as long as 99 % of the
answers stay. On clips of another sealed name the same cut is put beside cuts of as many layers of each edge class,
drawn at random. One row: what each keeps of the answers that were right.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from onlooker import models
from onlooker.cli.bench_flow import right_answers
from onlooker.core import provenance
from onlooker.core.contracts import VideoModel
from onlooker.evals import flow
from onlooker.evals.run_settings import RunSettings
from onlooker.evals.statistics import estimate, paired_gap

KEEPS = 0.99


def chosen(model: VideoModel, samples: Sequence[flow.Sample], found: Mapping[str, Sequence[float]]) -> flow.Cut:
    """The cut that grows, cheapest edges first, as long as so many answers stay."""
    cut: dict[str, frozenset[int]] = {edge: frozenset() for edge in found}
    for lost, edge, layer in sorted((lost, edge, n) for edge, row in found.items() for n, lost in enumerate(row)):
        more = cut | {edge: cut[edge] | {layer}}
        kept = flow.still_right(model, samples, more)
        print(f"{edge} in layer {layer}, alone {lost:.3f}: {kept:.3f} kept", flush=True)
        cut = more if kept >= KEEPS else cut
    return cut


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket-naive")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--choose", type=int, default=96, help="questions that layers are chosen on")
    parser.add_argument("--judge", type=int, default=192, help="questions that are told of")
    parser.add_argument("--random", type=int, default=10, help="random cuts of as many layers")
    parser.add_argument("--seals", nargs=2, default=("0", "1"), help="names of the clips to choose and to judge on")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = models.load(given.model, device=given.device)
    seeds = [RunSettings(seeds=f"sealed:systems-map-the-flow-202611-{name}").first_seed for name in given.seals]
    learn = right_answers(model, given.choose, lambda: None, seeds[0])
    print(f"{len(learn)} of {given.choose} questions answered rightly to choose on", flush=True)
    found = flow.drops(model, learn, flow.EDGES, 1, lambda: None)
    for edge, row in found.items():
        print(edge, *(f"{lost:.3f}" for lost in row), flush=True)
    cut = chosen(model, learn, found)
    told = right_answers(model, given.judge, lambda: None, seeds[1])
    ours = [float(flow.probability(model, one, cut)[1]) for one in told]
    layers = model.spec.num_layers
    drawn = [
        [float(flow.probability(model, one, flow.random_cut(cut, layers, seed))[1]) for one in told]
        for seed in range(given.random)
    ]
    by_question = [sum(column) / len(drawn) for column in zip(*drawn, strict=True)]
    names = [str(n) for n in range(len(told))]
    keeps, gap = estimate(ours, names), paired_gap([a - b for a, b in zip(ours, by_question, strict=True)], names)
    row = {
        "bench": "flow_line", "model": given.model, "chosen_on": len(learn), "judged_on": len(told),
        "seals": list(given.seals), "drops": found,
        "cut": {edge: sorted(some) for edge, some in cut.items()},
        "edges_cut": sum(map(len, cut.values())), "edges": layers * len(flow.EDGES),
        "keeps": keeps.value, "low": keeps.low, "high": keeps.high,
        "random_keeps": sum(by_question) / len(by_question), "random": [sum(one) / len(one) for one in drawn],
        "gap": gap.gap, "gap_low": gap.low, "gap_high": gap.high, "p": gap.p,
        "commit": provenance.commit(), "versions": provenance.versions(), "device": str(model.spec.device),
    }  # fmt: skip
    with given.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"chosen cut keeps {keeps.value:.3f}, random cuts of the same size {row['random_keeps']:.3f}")


if __name__ == "__main__":
    main()
