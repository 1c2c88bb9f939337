"""Overlay pictures of chosen failures: what was kept of the frames before a question that was answered wrong."""

from pathlib import Path

from onlooker.evals.item import Item
from onlooker.evals.oracle import feed
from onlooker.evals.replay import Outcome
from onlooker.evals.run_settings import load_items, make_system
from onlooker.evals.runs import Run
from onlooker.evals.score import marks
from onlooker.evals.systems import EngineSystem


def wrong(run: Run, most: int) -> list[Outcome]:
    """Answers that were wrong, of as many categories as there are, in the order of the run."""
    bad = [o for o in run.outcomes if o.reply and (found := marks(o)) and not any(mark.value for mark in found)]
    first_of_task = {outcome.query.task: outcome for outcome in reversed(bad)}
    others = [outcome for outcome in bad if outcome is not first_of_task[outcome.query.task]]
    return [*first_of_task.values(), *others][:most]


def draw(run: Run, folder: Path, most: int = 3) -> list[tuple[Outcome, Path]]:
    """Watch the videos of chosen failures again, up to the question, and draw the last frames with their kept tokens.

    Empty for controls, which have no tokens.
    """
    reading = load_items(run.settings)
    system = make_system(run.settings, reading)
    if not isinstance(system, EngineSystem) or run.settings.control:
        return []
    items = {item.video.id: item for item in reading.items}
    drawn = []
    for number, outcome in enumerate(wrong(run, most)):
        path = folder / f"{run.folder.name}-{number}.png"
        if outcome.query.video in items:
            _draw_one(system, items[outcome.query.video], outcome, run.settings.fps, path)
            drawn.append((outcome, path))
    return drawn


def _draw_one(system: EngineSystem, item: Item, outcome: Outcome, fps: float, path: Path) -> None:
    from onlooker.video.overlay import OverlayWriter

    with system.engine.open(trace=True) as session, OverlayWriter(path, fps) as writer:
        feed(session.states["compressor"], item)
        for frame in item.open(fps):
            if frame.time_s > outcome.query.ask_time:
                break
            session.push(frame)
            if session.trace is not None:
                writer.add(frame, session.trace.recomputed, session.trace.kept)
