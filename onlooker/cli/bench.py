"""onlooker bench: time the encoder and the prefill on this machine, beside what arithmetic allows."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onlooker.cli import options
from onlooker.cli.app import app
from onlooker.cli.progress import Working
from onlooker.cli.timing import Action, machine_card, numbers_of, show, time_in_turns
from onlooker.core.errors import InputError, ModelError

if TYPE_CHECKING:
    from onlooker.core.contracts import EncoderAccelerator, VideoModel

bench = typer.Typer(help="Time the encoder or the prefill on this machine.")
app.add_typer(bench, name="bench")

CLIP_FRAMES = 8
Repeats = Annotated[int, typer.Option(help="Timed repetitions; medians are reported, and p95.", min=1, max=100_000)]
Streams = Annotated[str, typer.Option(help="Streams in a batch; several by commas.")]
BenchModel = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A model, or the sizes of one with random weights: llava-onevision-0.5b, llava-onevision-7b.",
    ),
]


@bench.command()
@options.takes_methods("encoder")
def encode(
    model: BenchModel = "pocket-aware",
    methods: Any = None,
    streams: Streams = "1,4",
    repeats: Repeats = 40,
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Prepared steps (on CUDA: kernels, captured graphs), dense ones too.")
    ] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
    progress: options.Progress = "auto",
) -> None:
    """Time a frame encoded whole (dense), as a refresh and selectively, in turns, beside the FLOP floor.

    Example: onlooker bench encode --encoder stc_cacher:recompute_ratio=0.25 --streams 1,8
    """
    from onlooker.core import registry

    method, counts = registry.make("encoder", methods["encoder"]), numbers_of(streams)
    working = Working(progress, as_json)
    with working.loading(model):
        loaded, weights = load_for_timing(model, dtype, device)
    # The lone selective frame's floor: what an interval would cost without its refresh.
    endless = dataclasses.replace(method, interval=None) if _interval(method) else method
    rows = []
    with working.counting("encoding", "timed runs", len(counts) * repeats) as step:
        for count in counts:
            tower, actions = _encode_actions(
                loaded, method, count, graphs, lambda name: step.to(step.done, f"making {name}")
            )
            step.to(step.done, "encoding")
            timed = time_in_turns(actions, repeats, loaded.spec.device, step.advance)
            row: dict[str, Any] = {"streams": count} | timed
            row["selective_of_dense"] = timed["selective_ms"] / timed["dense_ms"]
            row["selective_floor"] = endless.cost(tower)
            if interval := _interval(method):
                mean_ms = (timed["refresh_ms"] + (interval - 1) * timed["selective_ms"]) / interval
                row |= {"interval_mean_of_dense": mean_ms / timed["dense_ms"], "interval_floor": method.cost(tower)}
            rows.append(row)
    card = machine_card(loaded, weights)
    card |= {"encoder": registry.describe(method), "patches": tower.num_tokens, "graphs": graphs}
    show("encode", card, rows, as_json)


def _encode_actions(
    model: "VideoModel", method: "EncoderAccelerator", count: int, graphs: bool, on_step: Callable[[str], None]
) -> tuple[Any, dict[str, Action]]:
    """What is timed with so many streams in a batch; making and forking states is left out of the time."""
    import torch

    from onlooker.encode.full import Full

    dense = Full()
    with torch.no_grad():
        clip = _clip(model, count)
        tower = model.tower(tuple(clip[0].shape[1:]))
        hidden = [model.embed_patches(pixels) for pixels in clip]
        plain = [dense.new_state() for _ in range(count)]
        begun = [method.new_state() for _ in range(count)]
        ways = {
            each: each.prepare(tower, hidden[0][0], count, on_step).encode if graphs else partial(each.encode, tower)
            for each in (dense, method)
        }
        run = ways[method]
        run(hidden[0], begun)
    return tower, {
        "dense": Action(lambda n: plain, lambda n, states: ways[dense](hidden[n % CLIP_FRAMES], states)),
        "refresh": Action(
            lambda n: [method.new_state() for _ in range(count)],
            lambda n, states: run(hidden[n % CLIP_FRAMES], states),
        ),
        "selective": Action(
            lambda n: [state.fork() for state in begun],
            lambda n, states: run(hidden[1 + n % (CLIP_FRAMES - 1)], states),
        ),
    }


@bench.command()
def prefill(
    model: BenchModel = "pocket-aware",
    tokens: Annotated[str, typer.Option(help="Visual tokens of a frame; several by commas.")] = "19,64",
    context: Annotated[int, typer.Option(help="Tokens already in memory.", min=1, max=1_000_000)] = 2000,
    streams: Streams = "1,4",
    repeats: Repeats = 20,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
    progress: options.Progress = "auto",
) -> None:
    """Time reading one frame of each stream into its memory, all streams in one pass (packed, as a graph, on CUDA).

    Example: onlooker bench prefill --tokens 16,49 --context 4000
    """
    import torch

    from onlooker.engine.packing import Work
    from onlooker.engine.passes import make_passes
    from onlooker.kvstore import KVStore

    stream_counts, token_counts = numbers_of(streams), numbers_of(tokens)
    working = Working(progress, as_json)
    with working.loading(model):
        loaded, weights = load_for_timing(model, dtype, device)
    spec, passes = loaded.spec, make_passes(loaded, "auto")
    filling = 500
    if spec.device.type == "cuda":
        sizes = {-(-count * each // 16) * 16 for count in stream_counts for each in token_counts}
        passes.prepare(sorted(sizes | {-(-filling // 16) * 16}), lambda name: None)
    rows = []
    total = len(stream_counts) * len(token_counts) * repeats
    with working.counting("reading", "timed runs", total) as done, torch.no_grad():
        filler = torch.randn(max(context, *token_counts), spec.hidden_dim, device=spec.device).to(spec.dtype) * 0.02
        for count in stream_counts:
            stores = [KVStore(spec, loaded.rotary) for _ in range(count)]
            for store in stores:
                for part in filler[:context].split(filling):
                    chunk = store.begin("vision", 0.0, 0.0, *loaded.place_text(len(part)))
                    passes.run([Work(part, chunk)])
                    chunk.seal()
            for frame_tokens in token_counts:
                embeddings, place = filler[:frame_tokens], loaded.place_text(frame_tokens)

                def read(n: int, stores: Any, embeddings: Any = embeddings, place: Any = place) -> None:
                    chunks = [store.begin("vision", 1.0, 1.0, *place) for store in stores]
                    passes.run([Work(embeddings, chunk) for chunk in chunks])
                    for chunk in chunks:
                        # The context stays as long as it was, so that every repetition does the same work.
                        chunk.abort()

                step = {"step": Action(lambda n, stores=stores: stores, read)}
                timed = time_in_turns(step, repeats, spec.device, done.advance)
                shape = {"streams": count, "frame_tokens": frame_tokens, "context": context}
                rows.append(shape | timed | {"per_frame_ms": timed["step_ms"] / count})
    show("prefill", machine_card(loaded, weights), rows, as_json)


def _interval(method: Any) -> int | None:
    names = {field.name for field in dataclasses.fields(method)}
    return method.interval if "interval" in names else None


def load_for_timing(model: str, dtype: str, device: str) -> tuple["VideoModel", str]:
    """A model by name, or one with random weights by the name of its sizes, and which of the two it is."""
    from onlooker import models
    from onlooker.core.contracts import VideoModel

    if model in models.SHAPES:
        return models.random_model(model, dtype=dtype, device=device), "random"
    loaded = models.load(model, dtype=dtype, device=device)
    if not isinstance(loaded, VideoModel):
        raise ModelError(
            "this model's stages cannot be timed", given=model, do="one with an adapter of its own, such as pocket"
        )
    return loaded, "trained"


def _clip(model: "VideoModel", streams: int) -> list[Any]:
    """Pixels of moving Pocket World frames, one `[streams, channels, rows, cols]` per moment."""
    import torch

    from onlooker.world import make_episode

    if streams > 4096:
        raise InputError("so many streams are not timed at once", given=str(streams), do="4096 or fewer")
    clips = [list(make_episode(seed, "test", CLIP_FRAMES).frames(fps=1.0)) for seed in range(streams)]
    return [torch.stack(model.preprocess([clip[n].image for clip in clips])) for n in range(CLIP_FRAMES)]
