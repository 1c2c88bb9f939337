"""Attention of one pass over rows in codes, in every way that there is, beside the same over rows as they are computed.

    python -m benchmarks.attend_codes --out OUT/attend_codes.jsonl

Random keys and values of the named sizes. A way is a shape of tiles, and whether codes are read where they lie
("codes"), are laid out first where several tiles read them ("laid out") or for all ("all laid out"), or there are none
("rows"). A case is streams x new tokens, `32x58+12`: and of twelve more streams one token, a word of an answer. One
line of JSON a way as it comes: microseconds of a layer, captured as a graph over all layers.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onlooker.core import registry
from onlooker.core.contracts import ModelSpec
from onlooker.core.provenance import commit, versions
from onlooker.kernels.coded_rows import COLUMNS, CodedRows, Form, Scratch, coding_kernels, decode_tiles, encode_block
from onlooker.kernels.packed_attention import PassTables, RowAttention, SegmentRows, attend_plainly
from onlooker.kernels.tiles import Tiles, tiles_for
from onlooker.kvstore.coded import Coded, read_layer, room

BLOCK = 58
PREFIX = 14


class Streams:
    """What several streams hold: a prefix as it is computed, and blocks as they are computed or in codes."""

    def __init__(self, spec: ModelSpec, codec: str, streams: int, rows: int) -> None:
        self.spec, self.codec = spec, registry.make("codec", codec)
        self.form = Form.of(self.codec.form)
        assert self.form is not None, "a codec that kernels know"
        generator = torch.Generator(spec.device).manual_seed(0)
        shape = (spec.num_layers, spec.num_kv_heads, BLOCK, spec.head_dim)

        def random() -> Tensor:
            return torch.randn(shape, generator=generator, device=spec.device).to(spec.dtype)

        blocks = [(random(), random()) for _ in range(8)]
        count = rows // BLOCK
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.coded: list[CodedRows] = []
        for stream in range(streams):
            own = [blocks[(stream + n) % 8] for n in range(count)]
            whole = [torch.cat([blocks[0][n][:, :, :PREFIX], *(one[n] for one in own)], dim=2) for n in range(2)]
            self.rows.append((whole[0], whole[1]))
            self.coded.append(self._coded(own))

    def _coded(self, blocks: list[tuple[Tensor, Tensor]]) -> CodedRows:
        assert self.form is not None
        tiles = len(self.form.tiles(0, BLOCK, 0))
        table = torch.zeros(len(blocks) * tiles, COLUMNS, dtype=torch.int64, device=self.spec.device)
        kernels, coded = coding_kernels(self.spec.device), list[Coded]()
        for n, (keys, values) in enumerate(blocks):
            one = room(self.spec, self.codec, BLOCK, self.spec.device)
            encode_block(keys, values, one.slab, self.form, table, n * tiles, n * BLOCK, kernels)
            coded.append(one)
        return CodedRows(lambda layer: read_layer(coded, self.codec, layer, self.spec), len(blocks) * BLOCK, table, 0)

    def segments(self, news: list[int], in_codes: bool) -> list[SegmentRows]:
        """One segment of new tokens a stream."""
        spec, segments = self.spec, []
        for (keys, values), coded, new in zip(self.rows, self.coded, news, strict=True):
            shape = (spec.num_layers, spec.num_kv_heads, new, spec.head_dim)
            own = [keys.new_zeros(shape) for _ in range(2)]
            seen = slice(0, PREFIX if in_codes else keys.shape[2])
            places = torch.arange(new, device=spec.device)[None]
            segments.append(
                SegmentRows(
                    keys[:, :, seen], values[:, :, seen], own[0], own[1], None, 0, places, keys.shape[2],
                    coded=coded if in_codes else None,
                )
            )  # fmt: skip
        return segments


def ways(new: int, streams: int, singles: int = 0) -> Iterator[tuple[str, Tiles]]:
    """(kind, tiles): what is used now first."""
    now = tiles_for(new * streams)
    if singles:
        for kind in ("rows", "codes", "laid out", "all laid out"):
            yield kind, now
        for shares, warps in ((8, 4), (32, 4), (16, 4)):
            yield "all laid out", replace(now, shares=shares, share_warps=warps)
        return
    for kind in ("rows", "codes", "laid out"):
        yield kind, now
    if new * streams > 320:
        shapes = [
            Tiles(128, 64, 1, 8, 2), Tiles(128, 128, 1, 8, 2), Tiles(64, 64, 1, 4, 3), Tiles(64, 64, 1, 4, 2),
            Tiles(64, 128, 1, 4, 2), Tiles(128, 64, 1, 4, 3), Tiles(128, 32, 1, 8, 4), Tiles(128, 64, 2, 8, 3),
        ]  # fmt: skip
        deep = [Tiles(128, 64, 1, 8, 3), Tiles(128, 128, 1, 8, 3), Tiles(128, 64, 1, 8, 4), Tiles(64, 128, 1, 4, 3)]
        for tiles in deep:
            for kind in ("rows", "laid out"):
                yield kind, tiles
        for tiles in shapes:
            yield "laid out", tiles
        for tiles in shapes[:4]:
            yield "rows", tiles
        for tiles in (Tiles(128, 64, 1, 8, 2), Tiles(128, 64, 1, 8, 1), Tiles(64, 64, 1, 4, 2)):
            yield "codes", tiles
        for shares, warps in ((4, 4), (8, 4), (32, 4), (16, 2), (16, 8), (8, 8)):
            yield "laid out", replace(now, shares=shares, share_warps=warps)
    elif new > 1:
        for tiles in (
            Tiles(128, 64, 8, 8, 3),
            Tiles(64, 64, 4, 4, 3),
            Tiles(64, 64, 16, 4, 3),
            Tiles(128, 64, 4, 8, 3),
        ):
            yield "laid out", tiles
    else:
        for tiles in (
            Tiles(16, 64, 8, 4, 2),
            Tiles(16, 64, 32, 4, 3),
            Tiles(16, 64, 16, 2, 3),
            Tiles(16, 64, 16, 4, 4),
        ):
            yield "codes", tiles


def timed(run: Any, layers: int, seconds: float = 0.25) -> float:
    """Microseconds a layer of a captured graph, the median of its replays."""
    if not torch.cuda.is_available():  # in Triton's interpreter, to see that this runs
        run()
        return 0.0
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    torch.cuda.synchronize()
    spent: list[float] = []
    began = time.perf_counter()
    while len(spent) < 5 or time.perf_counter() - began < seconds:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        spent.append(first.elapsed_time(last) * 1000 / layers)
    return sorted(spent)[len(spent) // 2]


def measure(streams: Streams, news: list[int], kind: str, tiles: Tiles) -> dict[str, Any]:
    """One way: time, time of laying out alone, and how far the first stream's output is from the plain form's."""
    spec, form, new = streams.spec, streams.form, news[0]
    segments = streams.segments(news, kind != "rows")
    total = -(-sum(news) // 16) * 16
    rows = sum(one.num_rows for one in streams.coded)
    scratch = Scratch(spec, rows, singles=kind.startswith("all")) if kind.endswith("laid out") else None
    tables = PassTables(spec, total, max(16, len(segments)), tiles, scratch=scratch)
    tables.fill(segments)
    attention = RowAttention(tables, None if kind == "rows" else form)
    angles = tables.positions[0][:, None] * 1e-4 ** (torch.arange(spec.head_dim // 2, device=spec.device) / 64)
    cos, sin = torch.cat([angles] * 2, 1).cos().float(), torch.cat([angles] * 2, 1).sin().float()
    attention.turn(cos, sin)
    generator = torch.Generator(spec.device).manual_seed(1)
    heads = (spec.num_query_heads, spec.num_kv_heads, spec.num_kv_heads)
    queries, keys, values = (
        torch.randn(total, n, spec.head_dim, generator=generator, device=spec.device).to(spec.dtype).transpose(0, 1)
        for n in heads
    )
    scale = spec.head_dim**-0.5
    got = attention.attend(0, queries, keys, values, scale)[:new].float().clone()
    mine = queries[:, :new], keys[:, :new], values[:, :new]
    wanted = attend_plainly(0, *mine, scale, segments[0], (cos[:new], sin[:new])).float()
    result: dict[str, Any] = {"error": round(float((got - wanted).norm() / wanted.norm()), 5)}

    def layers() -> None:
        for layer in range(spec.num_layers):
            attention.attend(layer, queries, keys, values, scale)

    result["us_a_layer"] = round(timed(layers, spec.num_layers), 1)
    if scratch is not None:
        codes = attention._codes

        def lay_out() -> None:
            for layer in range(spec.num_layers):
                decode_tiles(tables.table, tables.num_segments, scratch, layer, spec.num_layers, codes, tiles)

        result["of_it_laying_out"] = round(timed(lay_out, spec.num_layers), 1)
    return result


def main() -> None:
    """Time every way, a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--rows", type=int, default=5000, help="rows in codes of a stream")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--cases", default="16x58,1x58,16x1,1x1,4x58,32x58", help="streams x new tokens of each")
    parser.add_argument("--seconds", type=float, default=200.0, help="no new way is begun after so many")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    spec = ModelSpec("7b", options.layers, 28, 4, 128, 3584, dtype, device, max_positions=1 << 20)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    card = {"card": name, "codec": options.codec, "rows": options.rows}
    card |= {"versions": versions(), "commit": commit()}
    began = time.perf_counter()
    cases = [tuple(map(int, case.replace("+", "x").split("x"))) for case in options.cases.split(",")]
    with torch.no_grad():
        held = Streams(spec, options.codec, max(one + sum(more) for one, _, *more in cases), options.rows)
        for count, new, *more in cases:
            some, most = Streams.__new__(Streams), count + sum(more)
            some.__dict__ |= held.__dict__ | {"rows": held.rows[:most], "coded": held.coded[:most]}
            news = [new] * count + [1] * sum(more)
            for kind, tiles in ways(new, count, sum(more)):
                if time.perf_counter() - began > options.seconds:
                    print("the time is over", file=sys.stderr)
                    return
                way = {"streams": count, "new": new, "singles": sum(more), "kind": kind, "tiles": str(tiles)}
                try:
                    way |= measure(some, news, kind, tiles)
                except Exception as error:
                    way |= {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
                line = json.dumps({"bench": "attend_codes"} | card | way)
                print(line[line.index('"streams"') :], flush=True)
                if options.out:
                    with options.out.open("a") as file:
                        file.write(line + "\n")


if __name__ == "__main__":
    main()
