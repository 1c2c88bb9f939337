"""onlooker bench flow: in which layers an answer looks at the video, measured by cutting attention."""

from typing import Annotated, Any

import typer

from onlooker.cli import options
from onlooker.cli.bench import BenchModel, bench, load_for_timing
from onlooker.cli.output import emit, note, show_table
from onlooker.cli.progress import Working
from onlooker.cli.timing import machine_card
from onlooker.core.errors import InputError

CONTROLS = 5


@bench.command()
def flow(
    model: BenchModel = "pocket",
    edges: Annotated[str, typer.Option(help="Edge classes, by commas.")] = "cross_frame,video_question,question_last,"
    "video_last",
    questions: Annotated[int, typer.Option(help="Pocket World questions that are put.", min=1, max=100_000)] = 64,
    window: Annotated[int, typer.Option(help="Layers that are cut together.", min=1, max=1000)] = 1,
    tolerance: Annotated[float, typer.Option(help="Share of the probability that a cut layer may cost.", min=0)] = 0.01,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
    progress: options.Progress = "auto",
) -> None:
    """Cut attention between groups of tokens, layer by layer, and tell what the right answers lose; then cut all layers
    that cost nothing at once, beside as many at random.

    Example: onlooker bench flow --edges video_question,video_last --questions 128
    """
    from onlooker.evals import flow as flows

    names = [name.strip() for name in edges.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(flows.EDGES)):
        given, do = ", ".join(unknown), f"some of: {', '.join(flows.EDGES)}"
        raise InputError("there is no such edge class", given=given, do=do)
    working = Working(progress, as_json)
    with working.loading(model):
        loaded, weights = load_for_timing(model, dtype, device)
    with working.counting("asking", "questions", questions) as step:
        samples = right_answers(loaded, questions, step.advance)
    if not samples:
        raise InputError("no question was answered rightly", given=model, do="a trained model, or more questions")
    layers = loaded.spec.num_layers
    with working.counting("cutting", "cuts", len(names) * layers + 1 + CONTROLS) as step:
        found = flows.drops(loaded, samples, names, window, step.advance)
        cut = flows.chosen_cut(found, tolerance)
        right = flows.still_right(loaded, samples, cut)
        step.advance()
        controls = []
        for seed in range(CONTROLS):
            controls.append(flows.still_right(loaded, samples, flows.random_cut(cut, layers, seed)))
            step.advance()
    card = machine_card(loaded, weights)
    card |= {"questions": questions, "right": len(samples), "window": window, "tolerance": tolerance}
    rows = [{"edge": edge, "drop": row, "cut": sorted(cut[edge])} for edge, row in found.items()]
    whole = {"still_right": right, "random_mean": sum(controls) / CONTROLS, "random": controls}
    if as_json:
        emit({"bench": "flow"} | card | {"rows": rows, "cut": whole})
        return
    note(f"{len(samples)} of {questions} questions answered rightly; share of the answer's probability lost by layer")
    table = [[row["edge"], *(f"{lost:.3f}" for lost in row["drop"])] for row in rows]
    show_table(["cut", *(str(n) for n in range(layers))], table, numbers=True)
    note(f"\nwithout all layers that cost at most {tolerance:g}: {right:.3f} of these answers stay")
    note(f"without as many of each class at random: {whole['random_mean']:.3f} (mean of {CONTROLS})")


def right_answers(model: Any, questions: int, advance: Any, seed: int = 0) -> list[Any]:
    """Questions on held-out clips, from this seed on, that the model answers rightly, as dense sequences with its
    answers."""
    from onlooker.engine import Engine
    from onlooker.evals import flow as flows
    from onlooker.evals.matching import is_right
    from onlooker.evals.suites import pocketworld

    engine = Engine(model, encoder="full", compressor="identity", memory="last_frames:frames=100000", passes="plain")
    samples = []
    for item in pocketworld.items(questions, seed):
        for query in item.queries:
            frames = [frame for frame in item.open(1.0) if frame.time_s <= query.ask_time]
            ids = flows.greedy(model, sample := flows.sample_of(engine, frames, query.question))
            if ids and is_right(query, model.decode_text(ids).strip()):
                samples.append(flows.answered(model, sample, ids))
            advance()
    return samples
