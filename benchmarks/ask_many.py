"""Many questions about one moment, together and one after the other: time, and whether the answers are the same.

    python -m benchmarks.ask_many --frames 256 --questions 32

A clip is watched once with full memory; then the questions are asked one by one, and all at once. Tokens of the stream
are read by neither: what is saved are passes, and reading keys and values from memory. `prefix_saved` is the share of
the tokens of all prompts (stream and question) that `ask_many` did not send through the model, as BatchLLM counts it.
"""

import argparse
import json
import time
from pathlib import Path

from benchmarks.profiling import functions, profiled
from onlooker.cli.bench import load_for_timing
from onlooker.core import provenance
from onlooker.engine import Engine
from onlooker.world import make_episode


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", default="full")
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=8, help="longest answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also where the time of all at once goes")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    model, weights = load_for_timing(given.model, given.dtype, given.device)
    engine = Engine(model, encoder="full", compressor="stc_pruner", memory=given.memory)
    episode = make_episode(3, "validation", duration_s=given.frames + 1.0, kind="long")
    session = engine.open()
    for _, frame in zip(range(given.frames), episode.frames(fps=1.0, size=(128, 128)), strict=False):
        session.push(frame)
    asked = [query.question for query in episode.questions(4 * given.questions, 1)] * given.questions
    questions, options = asked[: given.questions], {"max_new_tokens": given.tokens}
    context = sum(span.num_tokens for span in session.store.spans)
    alone = [session.ask(question, **options) for question in questions]  # a first time, to warm up
    together = session.ask_many(questions, at_once=given.questions, **options)
    one, many = [], []
    for _ in range(given.repeats):
        began = time.perf_counter()
        for question in questions:
            session.ask(question, **options)
        one.append(time.perf_counter() - began)
        began = time.perf_counter()
        session.ask_many(questions, at_once=given.questions, **options)
        many.append(time.perf_counter() - began)
    if given.profile:

        def at_once() -> None:
            session.ask_many(questions, at_once=given.questions, **options)

        functions(at_once, times=2)
        profiled(engine.device, at_once)
    own = sum(answer.usage.prompt_tokens for answer in alone)
    row = {
        "bench": "ask_many", "model": given.model, "weights": weights, "memory": given.memory,
        "dtype": str(model.spec.dtype).removeprefix("torch."), "device": engine.device.type,
        "frames": given.frames, "context_tokens": context, "questions": len(questions), "answer_tokens": given.tokens,
        "alone_s": round(min(one), 4), "together_s": round(min(many), 4),
        "times_as_fast": round(min(one) / min(many), 2),
        "same_answers": sum(a.text == b.text for a, b in zip(alone, together, strict=True)),
        "prefix_saved": round(1 - own / (own + context * len(questions)), 4),
        "commit": provenance.commit(), "versions": provenance.versions(),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    if given.out:
        with Path(given.out).open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
