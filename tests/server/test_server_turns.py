"""Whose frame is next: nobody starves, and answers are not held up by frames."""

from dataclasses import dataclass

from onlooker.server.turns import Turns


@dataclass
class Stream:
    waits_since_s: float
    is_waiting: bool = True


def test_the_longest_waiting_come_first():
    streams = [Stream(3.0), Stream(1.0), Stream(2.0), Stream(0.0, is_waiting=False)]
    turns = Turns(most_frames=2)
    assert turns.choose(streams, []) == ([streams[1], streams[2]], [])


def test_steps_with_questions_take_as_many_frames_as_there_is_time_for():
    streams = [Stream(float(n)) for n in range(100)]
    turns = Turns(most_frames=32, step_s=0.2)
    for _ in range(100):
        turns.note(4, 0.4)  # a tenth of a second each
    assert len(turns.choose(streams, ["a question"])[0]) in (1, 2)
    for _ in range(200):
        turns.note(4, 0.004)
    assert len(turns.choose(streams, ["a question"])[0]) == 32


def test_a_fast_stream_does_not_lose_its_turn_by_pushing(client, shared, jpegs):
    """Its waiting frame gets newer and newer, but its turn counts from when the first of them came."""
    import threading

    from running_server import opened

    path = opened(client)
    stream = shared.service.streams[path.rpartition("/")[2]]
    hold = threading.Event()
    shared.service.worker.call(lambda engine: hold.wait(60))
    since = set()
    for number in range(3):
        kind = {"content-type": "image/jpeg"}
        client.post(f"{path}/frame", params={"pts": number}, content=jpegs[number], headers=kind)
        since.add(stream.waits_since_s)
    hold.set()
    assert len(since) == 1
    client.delete(path)
