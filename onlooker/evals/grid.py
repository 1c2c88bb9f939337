"""Grids: several runs from one file or one line, and the grids that come with the library."""

import itertools
import tomllib
from pathlib import Path
from typing import Any

from onlooker.core.errors import InputError
from onlooker.evals.run_settings import RunSettings, check, from_dict

_DENSE = {"encoder": "full", "memory": "full"}
_HELD = {"encoder": "full", "memory": "last_frames:frames=64", "compressor": "identity"}
"""Holds the tokens of a clip, and reads at a question what a refiner leaves of them."""
BUILT_IN: dict[str, list[dict[str, Any]]] = {
    "controls": [
        {**_DENSE, "compressor": "identity", "name": "all tokens"},
        {**_DENSE, "compressor": "stc_pruner:keep=16", "name": "stc_pruner"},
        *({**_DENSE, "compressor": f"random:keep=16,seed={s}", "name": f"random, seed {s}"} for s in range(3)),
        {**_DENSE, "compressor": "uniform:keep=16", "name": "uniform"},
        {**_DENSE, "compressor": "lower_resolution:side=4", "name": "lower resolution"},
        {**_DENSE, "compressor": "identity", "fps": 0.27, "name": "fewer frames"},
        {**_DENSE, "compressor": "identity", "memory": "last_frames:frames=1", "name": "newest frame"},
        {**_DENSE, "compressor": "identity", "memory": "sliding_window:window_frames=8", "name": "recent 8 frames"},
        {**_DENSE, "compressor": "oracle:keep=16", "name": "oracle tokens"},
        {**_DENSE, "compressor": "identity", "control": "text_only", "name": "text only"},
        {"control": "oracle:0.1", "name": "oracle that errs in 10 %"},
        {"control": "best_constant", "name": "best constant"},
        {"control": "yes", "name": "always yes"},
        {"control": "blind_clock:6", "name": "blind clock, 6 s"},
        {"control": "guess:0", "name": "guess"},
    ],
    "refiners": [
        {**_HELD, "name": "all tokens"},
        {**_DENSE, "compressor": "identity", "refiner": "fastv:ratio=0.25", "name": "fastv"},
        {**_DENSE, "compressor": "identity", "refiner": "prunevid2:ratio=0.25", "name": "prunevid2"},
        {**_DENSE, "compressor": "identity", "refiner": "b_vllm:ratio=0.25", "name": "b_vllm, rows"},
        {**_HELD, "refiner": "b_vllm:ratio=0.25", "name": "b_vllm"},
        *({**_HELD, "refiner": f"ppllava:frames=1,side=2,kernel={k}", "name": f"ppllava, {k}"}
          for k in ("fixed", "published", "mean")),
        {**_HELD, "refiner": "tifre:ratio=0.25,fold=0.25", "name": "tifre, folded"},
        {**_HELD, "refiner": "tifre:ratio=0.25", "name": "tifre"},
        {**_HELD, "refiner": "iva:fine=4,coarse=8", "name": "iva"},
        *({**_HELD, "compressor": f"random:keep=16,seed={s}", "name": f"random, seed {s}"} for s in range(3)),
        {**_HELD, "compressor": "stc_pruner:keep=16", "name": "stc_pruner"},
        {**_HELD, "fps": 0.25, "name": "fewer frames"},
    ],
    "stc": [
        {"encoder": encoder, "compressor": compressor, "memory": "full"}
        for compressor in ("identity", "stc_pruner:keep_ratio=0.3")
        for encoder in (
            "full", *(f"stc_published:interval={n},recompute_ratio=0.25" for n in (1, 2, 4, 8, 0)),
            *(f"stc_published:interval=4,recompute_ratio={r}" for r in (0.1, 0.5)),
            "stc_published:interval=4,recompute_ratio=0.25,selection=shared",
        )
    ],
}  # fmt: skip
"""`controls`: everything at 16 of 64 tokens a frame (18 a second with the clock), beside all tokens and blind players;
`refiners`: a quarter of the tokens read at each question, chosen by its words, beside as many at random, of the
stream's pruner and of fewer frames; `stc`: Cacher and Pruner, alone and together."""
SHARED = ("refiners",)
"""Grids, beside that of compressors, whose runs all see what the dense tower makes of the same clips."""


def expand(spec: str, base: dict[str, Any]) -> list[RunSettings]:
    """The runs of a grid: a TOML file, a name of `BUILT_IN`, or `key=a|b; key=c|d` (every combination).

    A file has `[base]` (what all runs share), `[axes]` (lists, combined) and any number of `[[run]]` tables. What the
    grid says goes before `base`, the settings of the command line. Raises `InputError` for anything else.
    """
    if spec in BUILT_IN:
        rows = BUILT_IN[spec]
    elif spec.endswith(".toml"):
        rows = _from_file(Path(spec))
    else:
        rows = _combined(_axes(spec))
    runs = [from_dict(base | row) for row in rows]
    for run in runs:
        check(run)
    if len({run.key for run in runs}) < len(runs):
        raise InputError("two runs of the grid are the same", given=spec, do="let every run differ in a setting")
    return runs


def _from_file(path: Path) -> list[dict[str, Any]]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError("the grid file cannot be read", given=f"{path}: {error}", do="write it as TOML") from error
    if not found:
        raise InputError("an empty grid", given=str(path), do="write a table base, axes or run")
    if unknown := sorted(set(found) - {"base", "axes", "run"}):
        raise InputError("a grid file has other tables", given=", ".join(unknown), do="use base, axes and run")
    shared = found.get("base", {})
    rows = [*(_combined(found["axes"]) if "axes" in found else []), *found.get("run", [])]
    return [shared | row for row in rows or [{}]]


def _axes(spec: str) -> dict[str, list[str]]:
    axes: dict[str, list[str]] = {}
    for part in filter(None, (word.strip() for word in spec.split(";"))):
        key, equals, values = part.partition("=")
        if not equals or not values.strip():
            do = f"key=a|b; key=c, a .toml file, or one of: {', '.join(BUILT_IN)}"
            raise InputError("this is no grid", given=part, do=do)
        axes[key.strip()] = [value.strip() for value in values.split("|")]
    if not axes:
        raise InputError("an empty grid", given=repr(spec), do="for example: compressor=uniform|random")
    return axes


def _combined(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
