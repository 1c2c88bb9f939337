"""Search by meaning: moments with the model's own features, or with the vectors of an endpoint."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from running_server import eventually, running

from onlooker.core.errors import InputError
from onlooker.engine import Engine
from onlooker.server.config import Faulty, read_config
from onlooker.server.database import Database, Record, Retention, Wanted
from onlooker.server.embedding import SearchSettings
from onlooker.server.moments import Moment, Moments, packed, unpacked
from onlooker.server.settings import Source, StandingQuestion
from onlooker.world import make_episode

NOW = float(round(time.time()))
COUNT = StandingQuestion("count", "how many shapes are visible now?", every_s=1.0)


@pytest.fixture
def database(tmp_path):
    made = Database(tmp_path)
    yield made
    made.close()


def keep(database: Database, *vectors, stream: str = "door", wall: float = NOW, space: str = "own x") -> None:
    before = database.written
    for number, vector in enumerate(vectors):
        row = np.asarray(vector, np.float32)
        database.add(Moment(stream, float(number), wall + number, space, row, b"jpeg %d" % number))
    eventually(lambda: database.written == before + len(vectors))


# ------------------------------------------------------------------------------------------------------ in the file


def test_vectors_are_kept_with_length_one_in_half_precision():
    vector = np.random.default_rng(0).normal(size=256).astype(np.float32)
    kept = unpacked(packed(vector))
    assert len(packed(vector)) == 512 and abs(np.linalg.norm(kept) - 1) < 1e-3
    assert np.abs(kept - vector / np.linalg.norm(vector)).max() < 1e-3
    assert not unpacked(packed(np.zeros(4, np.float32))).any()


def test_a_moment_finds_what_looks_like_it(database):
    moments = Moments(database)
    keep(database, (1, 0, 0.2), (0.9, 0.1, 0.2), (0, 1, 0.2), (0.1, 0.9, 0.2))
    found = moments.find(Wanted(limit=10), "own x", None, [1])
    assert [one["time_s"] for one in found][:2] == [0.0, 1.0] and len(found) == 4
    assert found[1]["score"] > 0.9 > 0 > found[2]["score"]
    assert moments.find(Wanted(limit=2), "own x", np.array([0, 1, 0], np.float32))[0]["time_s"] in (2.0, 3.0)
    assert moments.find(Wanted(), "own y", None, [1]) == [], "vectors of another model are not compared"
    assert moments.find(Wanted(), "own x", np.ones(7, np.float32)) == [], "nor those of another length"
    assert moments.find(Wanted(), "own x", None, [99]) == []


def test_only_what_is_wanted_is_found_and_the_example_may_be_elsewhere(database):
    moments = Moments(database)
    keep(database, (1, 0), (0, 1))
    keep(database, (1, 0.1), (0.1, 1), stream="yard", wall=NOW + 4000)
    found = moments.find(Wanted(stream="yard"), "own x", None, [1])
    assert [(one["stream"], one["time_s"]) for one in found] == [("yard", 0.0), ("yard", 1.0)]
    assert [one["wall"] for one in moments.find(Wanted(until=NOW + 1000), "own x", None, [3])] == [NOW, NOW + 1]
    assert [one["wall"] for one in moments.find(Wanted(since=NOW + 4001), "own x", None, [1])] == [NOW + 4001]


def test_words_lead_to_the_moments_of_what_was_said(database):
    moments = Moments(database)
    keep(database, (1, 0), (0, 1), (0.9, 0.2), (0.1, 0.8))
    database.add(Record("answer", "door", None, "a red truck", {}, seen_wall=NOW + 0.3))
    database.add(Record("answer", "door", None, "a red truck too far from any moment", {}, seen_wall=NOW + 9000))
    database.add(Record("answer", "door", "anna", "a green truck of anna's", {}, seen_wall=NOW + 1))
    eventually(lambda: len(database.find(Wanted(owner="anna"))) == 3)
    seeds = moments.said(Wanted("red truck"), "own x")
    assert seeds == [1]
    assert [one["time_s"] for one in moments.find(Wanted("red truck", limit=2), "own x", None, seeds)] == [0.0, 2.0]
    assert moments.said(Wanted("green"), "own x") == [] and moments.said(Wanted("green", owner="anna"), "own x") == [2]


def test_moments_are_bounded_by_age_and_by_their_share(tmp_path):
    database = Database(tmp_path, Retention(days=1.0, num_bytes=400_000))
    moments = Moments(database)
    keep(database, (1, 0), wall=time.time() - 2 * 86400)
    before = database.written
    for number in range(200):
        jpeg = b"x" * 2000
        database.add(Moment("door", float(number), time.time(), "own x", np.ones(8, np.float32), jpeg))
    eventually(lambda: database.written == before + 200)
    database.tidy()
    assert moments.picture(1) is None, "too old"
    moments.tidy(0.25)
    kept = moments.find(Wanted(limit=500), "own x", np.ones(8, np.float32))
    assert 30 <= len(kept) <= 50 and max(one["time_s"] for one in kept) == 199.0, "the newest stay"
    database.retention = Retention(num_bytes=120_000)
    database.tidy()
    assert database.num_bytes() <= 120_000
    database.close()


def test_what_cannot_be_is_refused():
    for wrong in ({"endpoint": "ftp://x"}, {"every_s": -1.0}, {"share": 0.0}, {"caption": "what?"}, {"model": "clip"}):
        with pytest.raises(InputError):
            SearchSettings(**wrong)
    with pytest.raises(Faulty, match="search: model, key and caption are for an endpoint"):
        read_config(None, text='[search]\nmodel = "clip"\n')


# ------------------------------------------------------------------------------------------------ a running server


def test_moments_of_a_running_server_are_found(pocket, tmp_path):
    sources = (Source("demo", "synthetic:1", questions=(COUNT,)), Source("other", "synthetic:2"))
    settings = {"sources": sources, "source_fps": 4.0, "state": tmp_path, "search": SearchSettings(every_s=1.0)}
    with running(pocket, **settings) as server, server.client() as client:

        def found(**query) -> dict:
            reply = client.get("/v1/search", params={"by": "meaning"} | query)
            assert reply.status_code == 200, reply.text
            return reply.json()

        eventually(lambda: len(found(q="shapes")["events"]) >= 4)
        best = found(q="shapes", limit=3)["events"]
        assert len(best) == 3 and best[0]["score"] >= best[1]["score"] and best[0]["stream"] in ("demo", "other")
        picture = client.get(best[0]["picture"])
        assert picture.status_code == 200 and picture.content.startswith(b"\xff\xd8")
        alike = found(like=best[0]["moment"], stream="other")["events"]
        assert alike and all(one["stream"] == "other" for one in alike)
        nothing = found(q="zebra")
        assert nothing["events"] == [] and "know no words" in nothing["why"]
        assert client.get("/v1/search", params={"by": "meaning"}).status_code == 422
        assert client.get("/v1/search", params={"like": 10**6}).status_code == 404
        assert client.get("/v1/search/moments/1000000.jpg").status_code == 404
    with running(pocket) as server, server.client() as client:
        assert client.get("/v1/search", params={"by": "meaning", "q": "a"}).json()["error"]["code"] == "history_off"
        assert client.get("/v1/search/moments/1.jpg").status_code == 404


class Colours(BaseHTTPRequestHandler):
    """An embedding endpoint that knows colours: of a picture its mean, of words the colour that they name."""

    names = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    asked: list[tuple[str | None, dict]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.headers["authorization"], body))
        if self.path != "/v1/embeddings" or self.headers["authorization"] != "Bearer secret":
            self.send_error(401)
            return
        if "input" in body:
            vector = next((one for name, one in self.names.items() if name in body["input"][0]), (1, 1, 1))
        else:
            url = body["messages"][0]["content"][0]["image_url"]["url"]
            picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
            vector = (np.asarray(picture).mean((0, 1)) / 255 + 1e-3).tolist()
        data = json.dumps({"data": [{"embedding": list(vector)}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def colours():
    Colours.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Colours) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def film(path, colour: tuple[int, int, int]) -> str:
    import av

    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=4)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        for _ in range(120):
            picture = np.full((64, 64, 3), colour, np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode())
    return str(path)


def test_an_endpoint_finds_pictures_by_words(pocket, tmp_path, colours):
    sources = tuple(
        Source(name, film(tmp_path / f"{name}.mp4", tuple(int(200 * part) for part in Colours.names[name])))
        for name in ("red", "blue")
    )
    search = SearchSettings(every_s=1.0, endpoint=colours, key="secret", model="colours")
    settings = {"sources": sources, "source_fps": 2.0, "state": tmp_path / "state", "search": search}
    with running(pocket, **settings) as server, server.client() as client:

        def best(words: str) -> list[str]:
            events = client.get("/v1/search", params={"by": "meaning", "q": words}).json()["events"]
            return [one["stream"] for one in events]

        eventually(lambda: set(best("a red thing")) == {"red", "blue"})
        assert best("a red thing")[0] == "red" and best("something blue")[0] == "blue"
        assert {name for _, body in Colours.asked for name in body} <= {"input", "messages", "model", "encoding_format"}
        assert "secret" not in repr(search)


def test_an_endpoint_that_refuses_is_told_and_counted(pocket, tmp_path, colours, caplog):
    search = SearchSettings(every_s=1.0, endpoint=colours, key="wrong", model="colours")
    settings = {"sources": (Source("demo", "synthetic:1"),), "source_fps": 4.0, "state": tmp_path, "search": search}
    with running(pocket, **settings) as server, server.client() as client:
        eventually(lambda: 'onlooker_failures_total{what="embedding"}' in client.get("/metrics").text)
        reply = client.get("/v1/search", params={"by": "meaning", "q": "red"})
        assert reply.status_code == 502 and reply.json()["error"]["code"] == "no_embedding"
    assert "the embedding endpoint refuses" in caplog.text


def test_captions_may_be_what_vectors_are_made_of(pocket, tmp_path, colours):
    caption = "what colour is the heart now?"
    search = SearchSettings(every_s=1.0, endpoint=colours, key="secret", model="colours", caption=caption)
    settings = {"sources": (Source("demo", "synthetic:1"),), "source_fps": 4.0, "state": tmp_path, "search": search}
    with running(pocket, **settings) as server, server.client() as client:
        eventually(lambda: client.get("/v1/search", params={"by": "meaning", "q": "red"}).json()["events"])
        (first, *_) = client.get("/v1/search", params={"by": "meaning", "q": "red"}).json()["events"]
        assert first["text"] and all("input" in body for _, body in Colours.asked)


# ------------------------------------------------------------------------------------------------- of the features


def test_the_gist_of_a_frame_is_the_mean_of_its_tokens(pocket):
    engine: Engine = pocket()
    frame = next(iter(make_episode(4, "test").frames(fps=1.0)))
    with engine.open(trace=True) as session:
        session.push(frame)
        assert session.trace is not None and session.trace.gist is not None
        gist = session.trace.gist
        assert gist.shape == (engine.model.spec.hidden_dim,) and gist.dtype == np.float32 and np.isfinite(gist).all()
        assert np.array_equal(session.trace.of_skipped(1.0).kept.shape, session.trace.kept.shape)
        assert session.trace.of_skipped(1.0).gist is None
