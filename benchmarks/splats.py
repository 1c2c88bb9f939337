"""Moving Gaussians as a stream: gated residuals (QUEEN) and attributes as video (V^3), against a fit of every frame.

    python -m benchmarks.splats --seeds 3 --out rows.jsonl

In the flat: pictures of Pocket World as means of two-dimensional Gaussians, each with a place, two sizes, an angle and
a colour. `full` fits every frame from the start and sends all attributes. `gated` (Girish et al., "QUEEN", arXiv
2412.04469) goes on from the frame before, lets only those Gaussians change that touch what has changed, and sends their
quantised residuals. `video` (Wang et al., "V^3", arXiv 2409.13648) goes on likewise with all, puts each attribute into
a picture with a pixel a Gaussian, and sends those through H.264. Sizes are those of the bytes that would be sent, all
but H.264's through zlib; quality is PSNR of what the receiver renders. Ours: gates by what changed where the paper
learns them; no motion fields, no pruning of Gaussians; nothing here renders a scene from another side.
"""

import argparse
import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onlooker.core import provenance
from onlooker.world import make_episode

REALISES = ("queen", "v_3")
SIDE, ROWS, COLS, FRAMES, FPS = 32, 6, 8, 16, 4.0
FIRST, AGAIN, AT_ONCE = 100, 40, 5
"""Steps of a fit from the start, most of one that goes on, and of those at a time."""
SPARED_DB, CRF = 0.2, 14
"""How much worse than the first frame a later one may be where residuals are sent; the quality asked of H.264."""
STEPS = torch.tensor([1 / 512, 1 / 512, 1 / 32, 1 / 32, 1 / 32, 1 / 128, 1 / 128, 1 / 128])
"""What each attribute is quantised to: two of place (in sides of the picture), two log sizes, angle, colour."""
CHANGED, TOUCHED = 0.05, 0.02
"""A pixel has changed when a colour differs by more; a Gaussian touches when so much of its weight lies on those."""


def pictures(seed: int) -> Tensor:
    """(frames, side, side, 3) in 0 to 1."""
    episode = make_episode(seed, "test", duration_s=FRAMES / FPS + 4.0)
    frames = list(episode.frames(fps=FPS, size=(SIDE, SIDE)))[-FRAMES:]
    return torch.from_numpy(np.stack([frame.image for frame in frames])).float() / 255


def _grid() -> tuple[Tensor, Tensor]:
    at = (torch.arange(SIDE) + 0.5) / SIDE
    rows, cols = torch.meshgrid(at, at, indexing="ij")
    return rows, cols


def weights(splats: Tensor) -> Tensor:
    """(splats, side, side) of attributes (splats, 8)."""
    rows, cols = _grid()
    down, right = rows - splats[:, 0, None, None], cols - splats[:, 1, None, None]
    sin, cos = splats[:, 4, None, None].sin(), splats[:, 4, None, None].cos()
    along, across = cos * down + sin * right, cos * right - sin * down
    sizes = splats[:, 2:4].exp()[..., None, None]
    return torch.exp(-0.5 * ((along / sizes[:, 0]) ** 2 + (across / sizes[:, 1]) ** 2))


def render(splats: Tensor) -> Tensor:
    """(side, side, 3): the weighted mean of colours."""
    near = weights(splats)
    return torch.einsum("nrc,nk->rck", near, splats[:, 5:]) / (near.sum(0)[..., None] + 1e-3)


def psnr(splats: Tensor, picture: Tensor) -> float:
    """Of what they render, in dB."""
    return float(-10 * torch.log10(((render(splats).clamp(0, 1) - picture) ** 2).mean()))


def start(picture: Tensor) -> Tensor:
    """A grid of round ones with the colours that lie there."""
    down, right = ((torch.arange(n) + 0.5) / n for n in (ROWS, COLS))
    places = torch.stack(torch.meshgrid(down, right, indexing="ij"), -1).reshape(-1, 2)
    rows, cols = (places * SIDE).long().clamp(0, SIDE - 1).T
    sizes = torch.full((len(places), 2), float(np.log(0.6 / COLS)))
    return torch.cat([places, sizes, torch.zeros(len(places), 1), picture[rows, cols]], 1)


def fit(splats: Tensor, picture: Tensor, steps: int, may: Tensor | None = None) -> Tensor:
    """Attributes after so many steps; only the Gaussians that may change."""
    splats = splats.clone().requires_grad_()
    optimiser = torch.optim.Adam([splats], lr=0.02)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 0.002)
    for _ in range(steps):
        optimiser.zero_grad()
        ((render(splats) - picture) ** 2).mean().backward()
        if may is not None and splats.grad is not None:
            splats.grad[~may] = 0.0
        optimiser.step()
        rate.step()
    return splats.detach()


@dataclass
class Sent:
    """What was sent of a clip, and what came out."""

    sizes: list[int]
    db: list[float]


def packed(values: Tensor) -> bytes:
    """Whole numbers, attribute by attribute, through zlib."""
    return zlib.compress(values.short().T.contiguous().numpy().tobytes(), 9)


def full(shown: Tensor) -> Sent:
    """Every frame from the start."""
    sent = Sent([], [])
    for picture in shown:
        levels = (fit(start(picture), picture, FIRST) / STEPS).round()
        sent.sizes.append(len(packed(levels)))
        sent.db.append(psnr(levels * STEPS, picture))
    return sent


def go_on(splats: Tensor, picture: Tensor, db: float, may: Tensor | None = None) -> Tensor:
    """Attributes after as few steps as bring back so many dB, none if they are there."""
    for _ in range(AGAIN // AT_ONCE):
        if psnr(splats, picture) >= db:
            break
        splats = fit(splats, picture, AT_ONCE, may)
    return splats


def gated(shown: Tensor) -> Sent:
    """Residuals of the Gaussians that touch what has changed."""
    levels = (fit(start(shown[0]), shown[0], FIRST) / STEPS).round()
    sent, held = Sent([len(packed(levels))], [psnr(levels * STEPS, shown[0])]), shown[0].clone()
    for picture in shown[1:]:
        changed = ((picture - held).abs().amax(-1) > CHANGED).float()
        near = weights(levels * STEPS)
        may = (near * changed).sum((1, 2)) > TOUCHED * near.sum((1, 2))
        after = (go_on(levels * STEPS, picture, sent.db[0] - SPARED_DB, may) / STEPS).round()
        moved = (after != levels).any(1)
        if moved.any():
            held = torch.where(changed[..., None] > 0, picture, held)  # what is too small to tell adds up
        residuals = (after - levels)[moved].short().T.numpy().tobytes()
        sent.sizes.append(len(zlib.compress(np.packbits(moved.numpy()).tobytes() + residuals, 9)))
        levels = after
        sent.db.append(psnr(levels * STEPS, picture))
    return sent


def video(shown: Tensor, crf: int = CRF) -> tuple[Sent, float]:
    """Attributes as pictures through H.264, a pixel a Gaussian; and seconds that decoding the clip took."""
    fitted = [fit(start(shown[0]), shown[0], FIRST)]
    db = psnr(fitted[0], shown[0])
    for picture in shown[1:]:
        fitted.append(go_on(fitted[-1], picture, db))
    clip = torch.stack(fitted)
    base = (clip[0] / STEPS).round() * STEPS
    moved = clip - base
    spans = moved.abs().amax((0, 1)).clamp_min(1e-6)
    planes = ((moved / spans + 1) * 127.5).round().byte().reshape(len(clip), ROWS, COLS, 8)
    tiled = planes.permute(0, 3, 1, 2).reshape(len(clip), 2, 4, ROWS, COLS).permute(0, 1, 3, 2, 4)
    packets, decode = h264(tiled.reshape(len(clip), 2 * ROWS, 4 * COLS).numpy(), crf)
    began = time.perf_counter()
    out = torch.from_numpy(np.stack(list(decode())))
    took = time.perf_counter() - began
    back = out.reshape(-1, 2, ROWS, 4, COLS).permute(0, 1, 3, 2, 4).reshape(len(clip), 8, ROWS, COLS)
    found = (back.permute(0, 2, 3, 1).reshape(len(clip), -1, 8).float() / 127.5 - 1) * spans + base
    head = len(packed(base / STEPS)) + 2 * 8  # the first frame's attributes, and how far each of them goes
    sent = Sent([head + packets[0], *packets[1:]], [psnr(f, p) for f, p in zip(found, shown, strict=True)])
    return sent, took


def h264(planes: np.ndarray, crf: int) -> tuple[list[int], Callable[[], Iterator[np.ndarray]]]:
    """Bytes of each picture of `[pictures, rows, cols]` after H.264, and what decodes them."""
    import av

    count, rows, cols = planes.shape
    coder = av.CodecContext.create("libx264", "w")
    coder.width, coder.height, coder.pix_fmt, coder.time_base = cols, rows, "yuv420p", Fraction(1, 25)
    coder.options = {"crf": str(crf), "preset": "veryslow", "tune": "zerolatency", "x264-params": "keyint=1000"}
    packets = []
    for number, plane in enumerate(planes):
        full_range = np.concatenate([plane, np.full((rows // 2, cols), 128, np.uint8)])
        frame = av.VideoFrame.from_ndarray(full_range, format="yuv420p")
        frame.pts = number
        packets += [bytes(one) for one in coder.encode(frame)]
    packets += [bytes(one) for one in coder.encode(None)]
    assert len(packets) == count

    def decode() -> Iterator[np.ndarray]:
        reader = av.CodecContext.create("h264", "r")
        for data in [*packets, None]:
            for frame in reader.decode(av.Packet(data) if data else None):
                yield frame.to_ndarray(format="yuv420p")[:rows, :cols]

    return [len(_told(one)) for one in packets], decode


def _told(packet: bytes) -> bytes:
    """A packet without the encoder's note about itself (NAL units of type 6)."""
    units = packet.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").split(b"\x00\x00\x01")[1:]
    return b"".join(b"\x00\x00\x01" + unit for unit in units if unit[0] & 31 != 6)


def against(sent: Sent, whole: Sent) -> tuple[float, float]:
    """The share of bytes, and how many dB better (of means over the clip)."""
    return sum(sent.sizes) / sum(whole.sizes), float(np.mean(sent.db) - np.mean(whole.db))


def row_of(seed: int) -> dict:
    """What a clip gave."""
    shown = pictures(seed)
    whole, residuals, (coded, took) = full(shown), gated(shown), video(shown)
    row: dict = {"bench": "splats", "seed": seed, "bytes_full": sum(whole.sizes)}
    row["db_full"] = round(float(np.mean(whole.db)), 2)
    for name, one in (("gated", residuals), ("video", coded)):
        share, gain = against(one, whole)
        row |= {f"bytes_{name}": sum(one.sizes), f"share_{name}": round(share, 3), f"db_{name}": round(gain, 2)}
    return row | {"commit": provenance.commit(), "versions": provenance.versions(), "decoded_fps": round(FRAMES / took)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="a row a clip, as it is done")
    given = parser.parse_args()
    for seed in range(given.first, given.first + given.seeds):
        row = row_of(seed)
        print(row, flush=True)
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
