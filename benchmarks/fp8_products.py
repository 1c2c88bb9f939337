"""Products of a language layer in 16 and in 8 bits: time, what making rows ready costs, and how far they are off.

    python -m benchmarks.fp8_products --out OUT/fp8_products.jsonl

Random weights of the named sizes, rows with a few large channels, as language models have. A line of JSON a number of
tokens: microseconds of each part of a layer, captured as a graph, and the relative error of each product against
float32 products of the plain weights.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.attend_codes import timed
from onlooker.core.provenance import commit, versions
from onlooker.models._arithmetic import Arithmetic, Float8Arithmetic, ModelArithmetic, Weights

SIZES = {"heads": (3584, 4608), "out": (3584, 3584), "gate": (3584, 18944), "up": (3584, 18944), "down": (18944, 3584)}


def rows_of(tokens: int, width: int) -> Tensor:
    """Normal numbers, some channels thirty times as large."""
    sizes = torch.ones(width, device="cuda")
    sizes[:: width // 12] = 30.0
    return (torch.randn(tokens, width, device="cuda") * sizes).bfloat16()


def _in_turn(arithmetic: Arithmetic, rows: Any, weights: list[Weights]) -> None:
    for one in weights:
        arithmetic.product(rows, one)


def measure(tokens: int, copies: int = 8) -> dict[str, Any]:
    """All parts of a layer, in turn over several copies of the weights, so that they come from memory."""
    device = torch.device("cuda")
    plain, eight = ModelArithmetic(device), Float8Arithmetic(device)
    found: dict[str, Any] = {"tokens": tokens}
    for name, (inputs, outputs) in SIZES.items():
        layers = [nn.Linear(inputs, outputs, bias=name == "heads", device=device).bfloat16() for _ in range(copies)]
        rows = rows_of(tokens, inputs)
        own = [plain.joined([layer]) for layer in layers]
        exact = nn.functional.linear(rows.float(), own[0].weight.float())
        exact += 0 if own[0].bias is None else own[0].bias.float()
        usual = plain.product(rows, own[0]).float()

        found[f"{name}_us"] = round(timed(partial(_in_turn, plain, rows, own), copies), 1)
        found[f"{name}_error"] = round(float((usual - exact).norm() / exact.norm()), 5)
        coded, ready = [eight.joined([layer]) for layer in layers], eight.ready(rows)
        for fast in (True, False):
            eight.fast_sums = fast
            which = "fp8" if fast else "fp8_exact_sums"
            got = eight.product(ready, coded[0]).float()
            found[f"{name}_{which}_us"] = round(timed(partial(_in_turn, eight, ready, coded), copies), 1)
            found[f"{name}_{which}_error"] = round(float((got - exact).norm() / exact.norm()), 5)
    hidden, more, weight = rows_of(tokens, 3584), rows_of(tokens, 3584), torch.ones(3584, device=device).bfloat16()
    gate, up = rows_of(tokens, 18944), rows_of(tokens, 18944)
    for kind, one in (("model", plain), ("fp8", eight)):
        found[f"norm_{kind}_us"] = round(timed(partial(one.normed, hidden, more, weight, 1e-6), 1), 1)
        found[f"gated_{kind}_us"] = round(timed(partial(one.gated, gate, up), 1), 1)
    found["ready_fp8_us"] = round(timed(partial(eight.ready, hidden), 1), 1)
    return found


def main() -> None:
    """A line a number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="960,1920,64,16")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    about = {"card": torch.cuda.get_device_name(), "versions": versions(), "commit": commit()}
    for tokens in map(int, options.tokens.split(",")):
        with torch.no_grad():
            line = json.dumps({"bench": "fp8_products"} | about | measure(tokens))
        print(line, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
