"""Short twins of one trunk that differ in the gaps they learn with: `python -m recipes.pocket.twins --mix pruner`.

Which choice of tokens is best on a model: is that the choice's doing, or the training's? All twins go on from the same
weights (`pocket-naive`, which never saw a gap) for the same number of small steps at the same rate, with answers alone
as the loss, and differ in what is dropped: nothing, tokens by chance, all but STC-Pruner's, all but those that show
things. Three seeds of each take clips of their own, the same ones in every mix, so that what is said of a mix can be
said with an interval over seeds. One process trains the seeds of a mix in turn; mixes can run side by side on one
device. States are kept where `--keep` says, and gone on from.

    python -m recipes.pocket.twins --mix pruner --trunk onlooker/models/pocket_naive --steps 600 --minutes 3 \\
        --sealed NAME --to pruner.jsonl
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recipes.pocket import checkpoint
from recipes.pocket.data import SMOKE, ClipSet, DataSettings, Feed, make_set
from recipes.pocket.evaluate import evaluate, load_checkpoint, sealed_look, sealed_seed
from recipes.pocket.model import TINY, PocketSizes
from recipes.pocket.train import Trainer, TrainSettings

MIXES = {"none": "naive", "chance": "neutral", "pruner": "aware", "truth": "truth"}
"""What a twin's gaps are chosen by, and the arm of the recipe that drops so."""
LOOK = ("dense", "stc=19", "keep=19", "uniform=19", "oracle=19")
GATES = ("dense", "last=1", "keep=19", "oracle=19")


def settings_of(mix: str, seed: int, steps: int, minutes: float, rate: float) -> TrainSettings:
    """Gaps from the first step on, nothing but answers as the loss, no Cacher and no hidden frames."""
    return TrainSettings(
        MIXES[mix], steps, minutes, rate, warm_share=0.05, fall_from=0.3, eyes_share=0.0, label_weight=0.0,
        stream_weight=0.0, evidence_weight=0.0, drop_from=0.0, cached_share=0.0, hide_share=0.0, seed=seed,
    )  # fmt: skip


def make_twin(
    settings: TrainSettings, trunk: Path | None, device: torch.device, *, sizes: PocketSizes, compiled: bool,
    like: Trainer | None = None,
) -> Trainer:  # fmt: skip
    """A trainer whose model has the trunk's weights (None: fresh ones); it shares the compiled code of `like`."""
    trainer = Trainer(settings, sizes, device, compiled=compiled and like is None)
    if like is not None and compiled:
        trainer.share_compiled(like)
    if trunk is not None:
        model, _ = load_checkpoint(trunk, device, sizes)
        trainer.model.hf.load_state_dict(model.hf.state_dict())
    return trainer


def take_turns(
    trainers: Sequence[Trainer], feed: Iterator[tuple[int, dict[str, np.ndarray]]], file: Path, about: dict, *,
    keep: Path | None = None, log_every_s: float = 15.0,
) -> None:  # fmt: skip
    """Train all to the end of their steps or minutes, one step of each in turn, each on a batch of its own."""
    began = shown = time.perf_counter()
    before = trainers[0].progress.seconds
    losses = {}
    while trainers[0].progress.share(trainers[0].settings) < 1.0:
        for trainer in trainers:
            trainer.progress.seconds = before + time.perf_counter() - began
            found = trainer.step(*next(feed))
            losses[trainer.settings.seed] = found.answers
        if time.perf_counter() - shown >= log_every_s:
            shown = time.perf_counter()
            read = {seed: round(loss.item(), 4) for seed, loss in losses.items() if loss is not None}
            note(file, about | {"step": trainers[0].progress.step, "seconds": round(shown - began, 1), "answers": read})
            if keep is not None:
                for trainer in trainers:
                    trainer.save(keep / f"{about['mix']}{trainer.settings.seed}")
    note(file, about | {"step": trainers[0].progress.step, "seconds": round(time.perf_counter() - began, 1)})


def look(trainer: Trainer, sealed: dict[str, ClipSet], gates: dict[str, ClipSet], file: Path, about: dict) -> None:
    """Append the twin's answers on sealed clips, mark by mark, and what the gates need, on validation clips."""
    model, encoder, device, dtype = trainer.model, trainer.encoder, trainer.device, trainer.dtype
    with model.eager():
        sealed_look(model, encoder, sealed, device, dtype, file, about, LOOK)
        for level, data in gates.items():
            scores = evaluate(model, encoder, data, GATES, device, dtype)
            note(file, about | {"level": level, "validation": {name: row["all"] for name, row in scores.items()}})


def note(file: Path, line: dict) -> None:
    """Add a line to a file and show it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    print(json.dumps(line)[:300], flush=True)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", choices=MIXES, required=True, help="what the gaps are chosen by")
    parser.add_argument("--trunk", type=Path, help="folder of the model to go on from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one twin of each")
    parser.add_argument("--steps", type=int, default=600, help="steps of each twin")
    parser.add_argument("--minutes", type=float, default=math.inf, help="minutes for all twins together, at most")
    parser.add_argument("--rate", type=float, default=1e-3, help="largest learning rate (1e-3)")
    parser.add_argument("--frames-per-step", type=int, default=480, help="frames of a batch (480)")
    parser.add_argument("--train-levels", nargs="+", default=["L2", "L3"], help="levels of their clips (L2 and L3)")
    parser.add_argument("--workers", type=int, default=3, help="processes that make clips (3)")
    parser.add_argument("--sealed", default="", help="name of the sealed clips that the twins are looked at with")
    parser.add_argument("--levels", nargs="+", default=["L2"], help="levels of those clips (L2)")
    parser.add_argument("--clips", type=int, default=128, help="such clips of each level (128)")
    parser.add_argument("--gate-levels", nargs="*", default=["L2", "L3"], help="levels whose gates are tried")
    parser.add_argument("--gate-clips", type=int, default=64, help="validation clips of each for that (64)")
    parser.add_argument("--to", type=Path, required=True, help="file that lines are added to")
    parser.add_argument("--keep", type=Path, help="folder for states, to go on from")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help="where to run")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, without a trunk")
    given = parser.parse_args(argv)
    if (given.trunk is None) != given.smoke:
        parser.error("give a --trunk, or --smoke")
    device = torch.device(given.device)
    levels = tuple((level, 1.0) for level in given.train_levels)
    data = replace(DataSettings(), frames_per_step=given.frames_per_step, easy_batches=0, levels=levels)
    data, sizes = (replace(SMOKE, easy_batches=0), TINY) if given.smoke else (data, PocketSizes())
    short = 8 if given.smoke else None
    # Workers first: they are forked, which must happen before the device is touched.
    states = {seed: given.keep / f"{given.mix}{seed}" for seed in given.seeds} if given.keep else {}
    feed = Feed(data, given.workers, first_batch=1_000_000)
    try:
        sealed = {level: make_set("test", given.clips, sealed_seed(given.sealed), workers=given.workers, level=level,
                                  frames=short) for level in (given.levels if given.sealed else ())}  # fmt: skip
        gates = {level: make_set("validation", given.gate_clips, workers=given.workers, level=level, frames=short)
                 for level in given.gate_levels}  # fmt: skip
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.set_float32_matmul_precision("high")
        trainers: list[Trainer] = []
        compiled = device.type == "cuda" and not given.eager
        for seed in given.seeds:
            settings = settings_of(given.mix, seed, given.steps, given.minutes, given.rate)
            trainers.append(make_twin(settings, given.trunk, device, sizes=sizes, compiled=compiled,
                                      like=trainers[0] if trainers else None))  # fmt: skip
            if seed in states and checkpoint.exists(states[seed]):
                trainers[-1].load(states[seed])
        take_turns(trainers, iter(feed), given.to, {"mix": given.mix}, keep=given.keep)
    finally:
        feed.close()
    for trainer in trainers:
        about = {"mix": given.mix, "seed": trainer.settings.seed, "step": trainer.progress.step,
                 "trunk": given.trunk.name if given.trunk else None, "sealed_name": given.sealed}  # fmt: skip
        look(trainer, sealed, gates, given.to, about)


if __name__ == "__main__":
    main()
