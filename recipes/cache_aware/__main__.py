"""The command: `python -m recipes.cache_aware --model FOLDER --videos FOLDER`."""

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from onlooker.core.errors import InputError, ModelError
from onlooker.encode.full import Full
from onlooker.encode.stc_published import STCPublished
from onlooker.models._loading import load_network, read_config
from onlooker.world import LEVEL_NAMES
from recipes.cache_aware import __doc__ as about
from recipes.cache_aware.reading import Asked
from recipes.cache_aware.sources import opened
from recipes.cache_aware.student import PARTS, AdaptSettings, Student, away
from recipes.pocket.optimise import Optimiser

STATE = "cache_aware.pt"
SAVE_EVERY = 100
"""Steps from one state written to the next."""


def adapt(student: Student, batches: Iterator[Asked], out: Path, *, log_every: int = 20) -> tuple[list[dict], int]:
    """Train the adapters; lines of history, and the steps made in all.

    A state is written every `SAVE_EVERY` steps, and gone on from.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings, history = student.settings, []
    parameters = student.parameters
    optimiser = Optimiser((f"layers.{number}", p) for number, p in enumerate(parameters))
    step, path = 0, out / STATE
    rng = random.Random(settings.seed)
    if path.exists():
        state = torch.load(path, map_location=parameters[0].device, weights_only=False)
        if state["settings"] != asdict(settings):
            do = "give the same settings, or another --out"
            raise InputError("the folder holds a training with other settings", given=str(path), do=do)
        for p, saved in zip(parameters, state["adapters"], strict=True):
            p.data.copy_(saved)
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
        rng.setstate(state["random"])

    def save() -> None:
        optimiser.round_moments()  # as a run that goes on will find them
        state = {"settings": asdict(settings), "adapters": [p.data for p in parameters], "step": step,
                 "optimiser": optimiser.state_dict(), "random": rng.getstate()}  # fmt: skip
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    began = time.perf_counter()
    while True:
        share = max(step / settings.steps, (time.perf_counter() - began) / 60 / settings.minutes)
        if share >= 1.0:
            break
        asked = next(batches)
        encoder = STCPublished(interval=rng.choice(settings.intervals), recompute_ratio=rng.choice(settings.ratios))
        cached, dense = student.loss(asked, encoder)
        (cached + settings.dense_weight * dense).backward()
        optimiser.step(settings.rate * min(1.0, (step + 1) / 20) * max(0.02, 1.0 - share))
        step += 1
        if step % log_every == 0 or step == settings.steps:
            line = {"step": step, "cached": round(cached.item(), 5), "dense": round(dense.item(), 6),
                    "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip
            history.append(line)
            print(json.dumps(line), flush=True)
        if step % SAVE_EVERY == 0:
            save()
    save()
    return history, step


@torch.no_grad()
def measure(student: Student, asked: Asked, interval: int = 4, ratio: float = 0.25) -> dict[str, float]:
    """How far answers are from the dense teacher's, in nats a token, and the share of answers that are the same word
    for word: under the Cacher with the given model and with the adapted one, and dense with the adapted one."""
    cacher, reader = STCPublished(interval=interval, recompute_ratio=ratio), student.reader
    with student.switched(False):
        said, wanted = reader.answers(student.features(asked.pixels, Full()), asked)
    counts = reader.counted(said, asked)
    there, found = (asked.sizes > 0), {}
    for name, on, encoder in (("before", False, cacher), ("after", True, cacher), ("dense", True, Full())):
        with student.switched(on):
            features = student.features(asked.pixels, encoder)
            scores, answers = reader.logits(features, asked, said), reader.answers(features, asked)[0]
        same = ((answers == said) | ~counts).all(-1) & there
        found[f"lost_{name}"] = round(away(scores, wanted, counts).item(), 5)
        found[f"same_{name}"] = round((same.sum() / there.sum().clamp(min=1)).item(), 4)
    return found


def write_checkpoint(network: Any, student: Student, source: Path, out: Path, made: int) -> None:
    """The merged checkpoint, with every file beside the weights that the given one has.

    Its config tells the settings and the steps made.
    """
    student.merge()
    network.config.onlooker = (getattr(network.config, "onlooker", None) or {}) | {
        "cache_aware": asdict(student.settings) | {"steps_made": made}
    }
    network.save_pretrained(out)
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja", ".txt", ".model") and not (out / path.name).exists():
            shutil.copy2(path, out / path.name)


def run(
    model: Path, source: Path | Sequence[str], out: Path, settings: AdaptSettings, dtype: torch.dtype = torch.float32,
    workers: int = 0, questions: Path | None = None, autocast: bool = False,
) -> dict:  # fmt: skip
    """Adapt the checkpoint in a folder, write `out`, and say what it brought.

    `source` is a folder of videos, or names of Pocket World's levels, whose clips `workers` processes make.
    """
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    kind = read_config(model)["model_type"]
    if kind != "llava_onevision":
        raise ModelError("this recipe adapts LLaVA-OneVision checkpoints", given=kind, do="give such a folder")
    config = LlavaOnevisionConfig.from_pretrained(model)
    with opened(model, source, config, questions, settings, workers, dtype) as (batches, words, device, what):
        network = load_network(LlavaOnevisionForConditionalGeneration, model, dtype, device)
        student = Student(network, words.prefix, settings, autocast=autocast)
        out.mkdir(parents=True, exist_ok=True)
        held_out = next(batches)
        _, made = adapt(student, batches, out)
    found = measure(student, held_out)
    print(json.dumps(found), flush=True)
    write_checkpoint(network, student, model, out, made)
    print(f"{out}: adapted to STC-Cacher, {what}, {made} steps")
    return found


def main(argv: list[str] | None = None) -> None:
    """The command."""
    standard = AdaptSettings()
    parser = argparse.ArgumentParser(
        prog="python -m recipes.cache_aware", description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a LLaVA-OneVision checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--videos", type=Path, help="folder of videos, searched below")
    source.add_argument("--world", nargs="+", choices=LEVEL_NAMES, help="levels of Pocket World, for a pocket model")
    parser.add_argument(
        "--out", type=Path, default=Path("out/cache_aware"), help="state while training, checkpoint after"
    )
    parser.add_argument("--asked", type=Path, help="file of questions to ask of the videos, one a line (ours)")
    parser.add_argument("--questions", type=int, default=standard.questions, help="questions about a window")
    parser.add_argument("--answer-tokens", type=int, default=standard.answer_tokens, help="of an answer, at most")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=standard.parts, help="what learns")
    parser.add_argument("--steps", type=int, default=standard.steps, help="steps, all commands together")
    parser.add_argument("--minutes", type=float, default=standard.minutes, help="minutes of this command, at most")
    parser.add_argument("--windows", type=int, default=standard.windows, help="windows of a step")
    parser.add_argument("--frames", type=int, nargs="+", default=standard.frames, help="frames of a window")
    parser.add_argument("--fps", type=float, default=standard.fps, help="frames a second taken from the videos")
    parser.add_argument("--rank", type=int, default=standard.rank, help="rank of the adapters; 0: whole matrices")
    parser.add_argument("--rate", type=float, default=standard.rate, help="largest learning rate")
    parser.add_argument("--intervals", type=int, nargs="+", default=standard.intervals, help="intervals to learn under")
    parser.add_argument("--ratios", type=float, nargs="+", default=standard.ratios, help="recomputed shares, likewise")
    parser.add_argument("--dense-share", type=float, default=standard.dense_share, help="windows seen densely as well")
    parser.add_argument("--dense-weight", type=float, default=standard.dense_weight, help="of staying the same there")
    parser.add_argument("--feature-weight", type=float, default=standard.feature_weight, help="of features as targets")
    parser.add_argument("--workers", type=int, default=0, help="processes that make clips of --world")
    parser.add_argument("--seed", type=int, default=standard.seed, help="seed of everything drawn")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision of the weights")
    parser.add_argument("--autocast", action="store_true", help="compute in bfloat16, whatever the weights are in")
    given = parser.parse_args(argv)
    settings = AdaptSettings(
        steps=given.steps, minutes=given.minutes, frames=tuple(given.frames), windows=given.windows, fps=given.fps,
        questions=given.questions, answer_tokens=given.answer_tokens, parts=tuple(given.parts), rank=given.rank,
        rate=given.rate, intervals=tuple(given.intervals), ratios=tuple(given.ratios), dense_share=given.dense_share,
        dense_weight=given.dense_weight, feature_weight=given.feature_weight, seed=given.seed,
    )  # fmt: skip
    try:
        torch.set_float32_matmul_precision("high")
        dtype = getattr(torch, given.dtype)
        run(given.model, given.videos or given.world, given.out, settings, dtype, given.workers, given.asked,
            given.autocast)  # fmt: skip
    except (InputError, ModelError) as problem:
        raise SystemExit(f"error: {problem}") from problem


if __name__ == "__main__":
    main()
