"""WHIP: a WebRTC client publishes into a session, is asked about, and hangs up."""

import asyncio
import threading

import av
import pytest
from running_server import eventually, opened, running

aiortc = pytest.importorskip("aiortc", reason="needs the extra 'webrtc': pip install 'onlooker[webrtc]'")

from onlooker.world import make_episode  # noqa: E402 - only where the test runs

SDP = {"content-type": "application/sdp"}


class World(aiortc.VideoStreamTrack):
    """Pocket World as a camera."""

    def __init__(self) -> None:
        super().__init__()
        self._images = [frame.image for frame in make_episode(4, "test", duration_s=4.0).frames(fps=5)]
        self._number = 0

    async def recv(self):
        pts, time_base = await self.next_timestamp()
        picture = av.VideoFrame.from_ndarray(self._images[self._number // 6 % len(self._images)], format="rgb24")
        picture.pts, picture.time_base = pts, time_base
        self._number += 1
        return picture


def test_a_publisher_is_watched_and_hangs_up(pocket):
    with running(pocket, whip=True) as server, server.client() as client:
        path = opened(client, fps=4)
        number = path.rpartition("/")[2]
        done = threading.Event()

        async def publish() -> None:
            peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
            peer.addTrack(World())
            await peer.setLocalDescription(await peer.createOffer())
            offer = peer.localDescription.sdp
            reply = await asyncio.to_thread(client.post, f"/whip/{number}", content=offer, headers=SDP)
            assert reply.status_code == 201, reply.text
            twice = await asyncio.to_thread(client.post, f"/whip/{number}", content=offer, headers=SDP)
            assert twice.status_code == 409
            await peer.setRemoteDescription(aiortc.RTCSessionDescription(reply.text, "answer"))
            await asyncio.to_thread(eventually, lambda: client.get(path).json()["frames"] >= 4)
            answer = await asyncio.to_thread(client.post, f"{path}/ask", json={"question": "what is there now?"})
            assert answer.status_code == 200 and answer.json()["text"]
            assert (await asyncio.to_thread(client.delete, reply.headers["location"])).status_code == 200
            assert (await asyncio.to_thread(client.delete, reply.headers["location"])).status_code == 404
            await peer.close()
            done.set()

        asyncio.run(publish())
        assert done.is_set()


def test_what_is_no_offer_is_refused_and_without_whip_there_is_none(pocket, shared):
    with running(pocket, whip=True) as server, server.client() as client:
        path = f"/whip/{opened(client).rpartition('/')[2]}"
        assert client.post(path, content=b"hello", headers=SDP).status_code == 422
        assert client.post(path, json={}).status_code == 415
        assert client.post(path, content=b"x" * 70_000, headers=SDP).status_code == 413
        assert client.post("/whip/w0.none", content=b"v=0", headers=SDP).status_code == 404
    with shared.client() as client:
        assert client.post("/whip/x", content=b"v=0", headers=SDP).status_code in (404, 405)
