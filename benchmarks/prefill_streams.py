"""Reading one frame of each of many streams: the stock module, the plain reference, packed passes, and their graphs.

    python -m benchmarks.prefill_streams --shapes llava-onevision-7b --context 6000

A model of the named sizes with random weights reads frames of 60 and 196 tokens behind `--context` tokens of memory.
The stock module (Transformers, SDPA, its own cache) reads the streams as one batch, same weights. Times are wall
clock from call to finished result, variants in turns; the floor is what the weights' bytes or the arithmetic allow at
the rates measured first. A second table times the attention alone. First a card, then tables, last one JSON line.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from onlooker.cli.timing import Action, machine_card, time_in_turns
from onlooker.core.contracts import VideoModel
from onlooker.engine.packing import Work
from onlooker.engine.passes import PackedPasses, PlainPasses
from onlooker.kernels.packed_attention import HEAD_DIMS, PassTables, RowAttention
from onlooker.kernels.tiles import Tiles, tiles_for
from onlooker.kvstore import KVStore
from onlooker.models import SHAPES, random_model
from onlooker.models._shapes import Shape

POCKET = Shape("pocket", 128, 8, 6, 192, 768, 3, 6, 256, 768, 4, 2, 640)
MOST_STOCK_MS = 400
"""A variant that takes longer is timed fewer times."""


class Stock:
    """The untouched decoder of Transformers over the same weights, all streams as one batch."""

    def __init__(self, model: Any, streams: int, context: int) -> None:
        decoder = model._network.get_decoder()
        config = copy.deepcopy(decoder.config)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self._module = type(decoder)._from_config(config, attn_implementation="sdpa", dtype=model.spec.dtype)
        self._module.load_state_dict(decoder.state_dict(), assign=True, strict=False)
        self._module.rotary_emb = model._layers._rotary
        self._module.eval()
        self._cache = DynamicCache(config=config)
        spec = model.spec
        for part in range(0, context, 1000):
            count = min(1000, context - part)
            filler = torch.randn(streams, count, spec.hidden_dim, device=spec.device, dtype=spec.dtype) * 0.02
            self._module(inputs_embeds=filler, past_key_values=self._cache, use_cache=True)

    def read(self, embeddings: Tensor) -> Tensor:
        """Last hidden states of `[streams, tokens, hidden_dim]`; the cache is as before afterwards."""
        hidden = self._module(inputs_embeds=embeddings, past_key_values=self._cache, use_cache=True).last_hidden_state
        self._cache.crop(-embeddings.shape[1])  # a negative number means the same in all versions
        return hidden


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", default="llava-onevision-7b", help=f"pocket or one of {', '.join(SHAPES)}")
    parser.add_argument("--streams", default="1,4,16")
    parser.add_argument("--tokens", default="60,196")
    parser.add_argument("--context", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--skip", default="", help="variants to leave out: stock,plain,attention")
    given = parser.parse_args()
    shape = POCKET if given.shapes == "pocket" else SHAPES[given.shapes]
    model = random_model(shape, dtype=given.dtype, device=given.device)
    with torch.no_grad():
        run(model, shape, given)


def run(model: VideoModel, shape: Shape, given: argparse.Namespace) -> None:
    """All tables of one model."""
    spec, on_gpu = model.spec, model.spec.device.type == "cuda"
    language = shape.text_layers * (
        shape.text_dim * shape.head_dim * (2 * shape.query_heads + 2 * shape.kv_heads)
        + 3 * shape.text_dim * shape.text_mlp
    )
    size = torch.empty((), dtype=spec.dtype).element_size()
    rates = measured_rates(spec.device, spec.dtype)
    card = machine_card(model, "random") | rates | {"language_weight_bytes": language * size}
    for key, value in card.items():
        print(f"{key.replace('_', ' ')}: {value:,.4g}" if isinstance(value, float) else f"{key}: {value}")
    stream_counts = [int(part) for part in given.streams.split(",")]
    token_counts = [int(part) for part in given.tokens.split(",")]
    sizes = sorted({-(-s * t // 16) * 16 for s in stream_counts for t in token_counts})
    # Without a CUDA device the packed passes run over plain PyTorch: slower, and only to show that all of it works.
    kernels = on_gpu and spec.head_dim in HEAD_DIMS
    plain, packed, graphs = (
        PlainPasses(model),
        PackedPasses(model, kernels=kernels),
        PackedPasses(model, kernels=kernels),
    )
    began = time.perf_counter()
    graphs.prepare(sizes, lambda name: None)
    card["prepared_s"] = time.perf_counter() - began
    print(f"prepared {len(sizes)} sizes in {card['prepared_s']:.1f} s\n")

    blank = filled_store(model, given.context)
    rows, checks = [], []
    print(f"{'streams':>7} {'tokens':>6}  {'variant':16} {'p50 ms':>9} {'p95 ms':>9} {'a frame':>9} {'floor':>7}")
    for streams in stream_counts:
        stores = [blank.fork() for _ in range(streams)]
        stock = None if "stock" in given.skip else Stock(model, streams, given.context)
        for tokens in token_counts:
            frames = torch.randn(streams, tokens, spec.hidden_dim, device=spec.device).to(spec.dtype) * 0.02
            variants: dict[str, Callable[[], Any]] = {}
            if stock is not None:
                variants["stock eager"] = lambda stock=stock, frames=frames: stock.read(frames)
            named = {"plain": plain, "packed": packed, "packed + graph": graphs}
            for name, passes in named.items():
                if name not in given.skip.split(","):
                    variants[name] = lambda p=passes, s=stores, f=frames: read(model, p, s, f)
            checks.append(compare(model, named, stores, frames))
            flop = (
                streams
                * tokens
                * (2 * language + 4 * shape.text_layers * spec.num_query_heads * spec.head_dim * given.context)
            )
            floor = 1000 * max(language * size / rates["bytes_per_s"], flop / rates["flop_per_s"])
            timed = time_variants(variants, given.repeats, spec.device)
            for name, (middle, high) in timed.items():
                row = {"streams": streams, "tokens": tokens, "variant": name, "p50_ms": middle, "p95_ms": high}
                row |= {"frame_ms": middle / streams, "floor_ms": floor}
                rows.append(row)
                print(
                    f"{streams:7} {tokens:6}  {name:16} {middle:9.2f} {high:9.2f} {middle / streams:9.2f} {floor:7.2f}",
                    flush=True,
                )
        del stores, stock
        if on_gpu:
            torch.cuda.empty_cache()
    worst = max(checks)
    print(f"\nlargest difference of packed or graph scores from plain ones: {worst:.2e} of their norm")
    attention = (
        [] if "attention" in given.skip or not kernels else time_attention(model, blank, stream_counts, token_counts)
    )
    print(
        json.dumps(
            {"bench": "prefill_streams"}
            | card
            | {"settings": vars(given), "rows": rows, "attention": attention, "error": worst}
        )
    )


def read(model: VideoModel, passes: Any, stores: list[KVStore], frames: Tensor, ask: bool = False) -> list[Any]:
    """One frame into each store; the memories stay as they are, so that every repetition does the same work."""
    place = model.place_text(frames.shape[1])
    chunks = [store.begin("vision", 1.0, 1.0, *place) for store in stores]
    works = [Work(frame, chunk, wants_logits=ask) for frame, chunk in zip(frames, chunks, strict=True)]
    scores = passes.run(works)
    for chunk in chunks:
        chunk.abort()
    return scores


def compare(model: VideoModel, named: dict[str, Any], stores: list[KVStore], frames: Tensor) -> float:
    """Largest relative difference of any variant's scores from the plain ones."""
    found = {}
    for name, passes in named.items():
        scores = torch.stack(read(model, passes, stores, frames, ask=True)).float()
        found[name] = scores.masked_fill(~scores.isfinite(), 0.0)
    wanted = found.pop("plain")
    return max(float((got - wanted).norm() / wanted.norm()) for got in found.values())


def filled_store(model: VideoModel, context: int) -> KVStore:
    """A store whose blocks hold so many tokens."""
    store, spec, passes = KVStore(model.spec, model.rotary), model.spec, PlainPasses(model)
    for part in (torch.randn(context, spec.hidden_dim, device=spec.device).to(spec.dtype) * 0.02).split(500):
        chunk = store.begin("vision", 0.0, 0.0, *model.place_text(len(part)))
        passes.run([Work(part, chunk)])
        chunk.seal()
    return store


def time_variants(
    variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Median and p95 milliseconds, in turns; a slow variant is timed apart and less often."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    quick, timed = {}, {}
    for name, action in variants.items():
        action()
        wait()
        began = time.perf_counter()
        action()
        wait()
        once = 1000 * (time.perf_counter() - began)
        if once < MOST_STOCK_MS:
            quick[name] = Action(lambda turn: None, lambda turn, ready, action=action: action())
            continue
        times = [once]
        for _ in range(2):
            began = time.perf_counter()
            action()
            wait()
            times.append(1000 * (time.perf_counter() - began))
        timed[name] = (statistics.median(times), max(times))
    found = time_in_turns(quick, repeats, device, lambda: None) if quick else {}
    timed |= {name: (found[f"{name}_ms"], found[f"{name}_p95_ms"]) for name in quick}
    return {name: timed[name] for name in variants}


def time_attention(model: VideoModel, blank: KVStore, streams: list[int], tokens: list[int]) -> list[dict[str, Any]]:
    """The attention of one layer alone: ways to cut the kernel, one SDPA call per stream, and FlexAttention."""
    rows = []
    print(f"\n{'streams':>7} {'tokens':>6}  {'attention of a layer':40} {'us':>8}")
    for count, each in ((1, 1), (16, 1), *((s, t) for s in streams for t in tokens)):
        with_flex = (count, each) == (streams[-1], tokens[0])
        for name, us in attention_times(model, blank, count, each, with_flex).items():
            rows.append({"streams": count, "tokens": each, "attention": name, "us": us})
            print(f"{count:7} {each:6}  {name:40} {us:8.1f}", flush=True)
        torch.cuda.empty_cache()
    return rows


def attention_times(model: VideoModel, blank: KVStore, count: int, each: int, with_flex: bool) -> dict[str, float]:
    """Microseconds of every way at so many streams with so many new tokens each; `*` marks what is used."""
    spec = model.spec
    stores = [blank.fork() for _ in range(count)]
    chunks = [store.begin("vision", 1.0, 1.0, *model.place_text(each)) for store in stores]
    segments = [chunk.rows() for chunk in chunks]
    total, scale = -(-count * each // 16) * 16, spec.head_dim**-0.5
    q, k, v = (
        torch.randn(total, heads, spec.head_dim, device=spec.device).to(spec.dtype).transpose(0, 1)
        for heads in (spec.num_query_heads, spec.num_kv_heads, spec.num_kv_heads)
    )
    actions: dict[str, Callable[[], Any]] = {}
    for tiles in dict.fromkeys([tiles_for(total), *candidates(total)]):
        tables = PassTables(spec, total, min(total, 64), tiles)
        tables.fill(segments)
        attention = RowAttention(tables)
        attention.turn(*model.rotary(tables.positions))
        used = "* " if tiles == tiles_for(total) else ""
        name = f"{used}{tiles.queries}x{tiles.keys} splits {tiles.splits} warps {tiles.warps} stages {tiles.stages}"
        actions[name] = lambda attention=attention: attention.attend(0, q, k, v, scale)
    queries = q[:, : count * each].reshape(spec.num_query_heads, count, each, -1).transpose(0, 1).contiguous()
    past_k, past_v = (
        torch.stack([getattr(rows, name)[0] for rows in segments]) for name in ("past_keys", "past_values")
    )
    actions["SDPA, one call, without the new keys"] = lambda: F.scaled_dot_product_attention(
        queries, past_k, past_v, enable_gqa=True, scale=scale
    )
    if with_flex:
        actions["FlexAttention, without the new keys"] = flex(queries, past_k, past_v, scale)
    return time_captured(actions)


def candidates(total: int) -> list[Tiles]:
    """Other ways to cut, to see whether `tiles_for` still chooses well."""
    if total <= 16:
        return [Tiles(16, 64, 8, 4, 3), Tiles(16, 64, 32, 4, 3), Tiles(16, 128, 16, 4, 3)]
    if total <= 320:
        return [Tiles(64, 64, 4, 4, 3), Tiles(64, 64, 16, 4, 2), Tiles(128, 64, 4, 8, 3), Tiles(128, 64, 8, 8, 3)]
    return [Tiles(128, 128, 1, 8, 2), Tiles(128, 64, 1, 8, 2), Tiles(64, 64, 1, 4, 3), Tiles(128, 64, 2, 8, 3)]


def time_captured(actions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Microseconds of each action by events, twenty of them in one graph, so that launches cost nothing."""
    found = {}
    for name, action in actions.items():
        try:
            for _ in range(3):
                action()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(20):
                    action()
            spent = []
            for _ in range(7):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                graph.replay()
                end.record()
                torch.cuda.synchronize()
                spent.append(start.elapsed_time(end) * 1000 / 20)
            found[name] = statistics.median(spent)
        except Exception as error:  # a cut that this card has no room for is a row, not an end
            print(f"    {name}: {type(error).__name__}: {str(error)[:80]}")
            found[name] = float("nan")
    return found


def flex(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Callable[[], Any]:
    """FlexAttention over all streams packed end to end, each seeing its own keys."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    streams, heads, each, dim = queries.shape
    context = keys.shape[2]
    packed = queries.transpose(0, 1).reshape(1, heads, streams * each, dim)
    packed_k, packed_v = (x.transpose(0, 1).reshape(1, x.shape[1], streams * context, dim) for x in (keys, values))

    def own(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query // each == key // context

    mask = create_block_mask(own, None, None, streams * each, streams * context, device=str(queries.device))
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(packed, packed_k, packed_v, block_mask=mask, enable_gqa=True, scale=scale)


def measured_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes moved per second by a large copy, and arithmetic per second of a large matrix product, on this machine."""
    if device.type != "cuda":
        many, side = 2**26, 512
    else:
        many, side = 2**32, 8192
    source = torch.empty(many, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    rates = {}
    for name, action, work in (
        ("bytes_per_s", lambda: target.copy_(source), 2 * many),
        ("flop_per_s", lambda: left @ right, 2 * side**3),
    ):
        spent = time_variants({name: action}, 7, device)[name][0]
        rates[name] = work / spent * 1000
    return rates


if __name__ == "__main__":
    main()
