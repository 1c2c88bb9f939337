"""From pictures to what the compressor gives out: the tower with the methods in place, for many streams at once."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from onlooker.core.contracts import Compress, Compressor, Encoded, Prepared, SideTower, VideoModel, VisionTower
from onlooker.core.frame import Frame
from onlooker.core.state import StreamState
from onlooker.core.tokens import VisualTokens
from onlooker.engine.emission import Pending, emitted, most_read
from onlooker.engine.hints import hand_on, says, told
from onlooker.engine.methods import Methods
from onlooker.engine.seeing import Arrival, Patch, Seen, arrive, batches
from onlooker.engine.session import Session
from onlooker.engine.stages import Stages


def encoder_in(tower: SideTower) -> str:
    """What the encoder's state in a further tower is called among a session's states."""
    return f"encoder.{tower.name}"


Shapes = tuple[tuple[int, ...], ...]
"""Of the pixels of a patch: for the model's own tower, and for each further one."""


class Eye:
    """How an engine sees. `wanted` is what its methods want to be told of a frame (`VideoModel.describe`)."""

    def __init__(self, model: VideoModel, methods: Methods, wanted: frozenset[str], stages: Stages) -> None:
        self._model, self._methods, self._wanted, self._stages = model, methods, wanted, stages
        self._device = model.spec.device
        self._prepared: dict[tuple[int, ...], Prepared] = {}
        self._prepared_beside: dict[tuple[str, tuple[int, ...]], Prepared] = {}
        self._most_frames = 0
        self._compress: tuple[Compressor, Compress] = methods.compressor, methods.compressor.compress_streams

    def prepare(
        self, picture: tuple[int, int], most_frames: int, on_step: Callable[[str], None]
    ) -> dict[str, torch.Tensor]:
        """Make the encoder's steps of fixed shape; the token extras of such a frame (see `Engine.prepare`)."""
        blank = np.zeros((*picture, 3), dtype=np.uint8)
        pixels = torch.cat(self._model.preprocess([blank] * self._model.patch_frames))
        shape = tuple(pixels.shape)
        like = self._model.embed_patches(pixels[None])[0]
        encoder = self._methods.encoder
        prepared = encoder.prepare(self.tower(shape), like, most_frames, on_step)
        encoded = prepared.encode(like[None], [encoder.new_state()])
        self._prepared_beside = {}
        for side in self._model.side_towers:
            own = side.preprocess([blank] * self._model.patch_frames)
            if (seen := side.tower(tuple(own.shape))).pack is None:
                on_step(f"{side.name}: has no packed form and runs as it is, counted in frames_unprepared")
                continue
            first = side.embed_patches(own[None], [side.new_state()])[0]
            beside = encoder.prepare(seen, first, most_frames, lambda step, name=side.name: on_step(f"{name} {step}"))
            self._prepared_beside[side.name, tuple(own.shape)] = beside
            encoded = side.fuse(encoded, beside.encode(first[None], [encoder.new_state()]), self.tower(shape))
        self._prepared, self._most_frames = {shape: prepared}, most_frames
        features, grid, extras = self._model.project(encoded, shape)
        if not self._model.side_towers and not self._model.adapters:  # which change what the compressor sees
            tokens = self._tokens(features, grid, extras, encoded, pixels[None], [Patch((Frame(blank, 0.0),))], [0])[0]
            compressor = self._methods.compressor
            self._compress = compressor, compressor.prepare(tokens, most_frames, on_step)
        return {name: rows[0] for name, rows in extras.items()}

    def take_over(self) -> None:
        """Go on with the prepared steps under the encoder's new settings."""
        over = self._methods.encoder.take_over
        self._prepared = {shape: over(prepared) for shape, prepared in self._prepared.items()}
        self._prepared_beside = {place: over(prepared) for place, prepared in self._prepared_beside.items()}

    def see(self, arrivals: Sequence[tuple[Session, Frame]]) -> list[Arrival]:
        """Pixels to kept tokens, for the newest frame of several streams, as far as it completes a patch.

        What a step that failed afterwards has seen of a frame is used again, so that a stream does not do its work
        twice because of what another one's part of the step has failed of.
        """
        with self._stages("preprocess", [session for session, _ in arrivals], self._device):
            for session, frame in arrivals:
                if session.arrival is None or session.arrival.frame is not frame:
                    session.arrival = arrive(self._methods.gate, self._model, session, frame)
        batch = [(session, session.arrival) for session, _ in arrivals]
        unseen = [(session, arrival) for session, arrival in batch if arrival.patch and arrival.seen is None]
        if unseen:
            seen = self.look([(session, arrival.patch) for session, arrival in unseen])
            for (session, arrival), one in zip(unseen, seen, strict=True):
                arrival.seen, session.arrival = one, arrival
        return [arrival for _, arrival in batch]

    def look(self, patches: Sequence[tuple[Session, Patch]], *, aside: bool = False, ends: bool = False) -> list[Seen]:
        """See one patch of each of several streams. Patches of one shape share a batch.

        The methods work on states that take effect when the patch is remembered, not before; `aside`: never. `ends`:
        the compressor gives out all that it holds.
        """
        sessions, count = [session for session, _ in patches], self._model.patch_frames
        with self._stages("preprocess", sessions, self._device):
            shown = [patch.pictures(count) for _, patch in patches]
            pictures = self._pixels([frame for frames in shown for frame in frames])
            together = [pictures[first : first + count] for first in range(0, len(pictures), count)]
            pixels = [torch.cat(some) for some in together] if count > 1 else pictures
            beside = [self._pixels_beside(frames) for frames in shown]
        groups: dict[Shapes, list[int]] = defaultdict(list)
        for number, one in enumerate(pixels):
            groups[tuple(one.shape), *(tuple(other.shape) for other in beside[number])].append(number)
        most = {shapes: self._most_frames for shapes in groups if shapes[0] in self._prepared}
        found: dict[int, Seen] = {}
        for (shape, *others), members in batches(groups, most):
            some = [sessions[n] for n in members]
            tower, further = self.tower(shape), list(zip(self._model.side_towers, others, strict=True))
            towers = [tower, *(side.tower(own) for side, own in further)]
            working = [session.forks() if aside else session.begin(most_read(session, towers)) for session in some]
            if self._prepared and not aside and not self._is_prepared(shape, further):
                for session in some:
                    session.totals.frames_unprepared += 1
            if self._methods.hears_codec and not aside:
                for n, session in zip(members, some, strict=True):
                    session.totals.frames_unsaid += not says(patches[n][1])
            if self._methods.encoder.hears_codec or self._methods.encoder.sees_pictures:
                hand_on(self._methods.encoder, [patches[n][1] for n in members], working, tower, self._device)
            with self._stages("encode", some, self._device):
                images = torch.stack([pixels[n] for n in members])
                encoded, own = self._encode(tower, images, [beside[n] for n in members], working)
            with self._stages("project", some, self._device):
                features, grid, extras = self._model.project(encoded, shape)
                added = [side.beside(seen, grid) for (side, _), seen in zip(further, own, strict=True)]
            with self._stages("compress", some, self._device):
                shown = [patches[n][1] for n in members]
                numbers = [session.next_number for session in some]
                whole = self._tokens(features, grid, extras, encoded, images, shown, numbers)
                for rows in added:
                    if rows is not None:
                        blank = self._model.language_extras
                        whole = [one.with_rows(own, blank) for one, own in zip(whole, rows, strict=True)]
                for adapter in self._model.adapters:
                    whole = adapter.adapt_streams(whole, [one[adapter.name] for one in working])
                compressor, pruned = self._methods.compressor, [one["compressor"] for one in working]
                made_for, compress = self._compress
                kept = (compress if made_for == compressor else compressor.compress_streams)(whole, pruned)
                for row, n in enumerate(members):
                    session, patch = patches[n]
                    newest = Pending(
                        session.next_number, patch.start_s, patch.end_s, len(patch.frames),
                        len(whole[row]),
                    )  # fmt: skip
                    emission = emitted(compressor, kept[row], (*session.pending, newest), pruned[row], ends)
                    found[n] = Seen(patch, grid, emission, tower, encoded, row)
        return [found[n] for n in range(len(patches))]

    def _tokens(
        self,
        features: torch.Tensor,
        grid: tuple[int, int],
        extras: Mapping[str, torch.Tensor],
        encoded: Encoded,
        images: torch.Tensor,
        patches: Sequence[Patch],
        numbers: Sequence[int],
    ) -> list[VisualTokens]:
        """What the compressor sees of one patch of each of several streams, by the frames' numbers in them."""
        more, about = self._model.describe(self._wanted, encoded, images, features) if self._wanted else ({}, {})
        hears = self._methods.compressor.hears_codec
        heard = [told(patch, grid, features.device) if hears else {} for patch in patches]
        return VisualTokens.of_frames(
            features,
            grid,
            numbers,
            [(patch.start_s + patch.end_s) / 2 for patch in patches],
            [
                {name: value[row] for name, value in (*extras.items(), *more.items())} | heard[row]
                for row in range(len(patches))
            ],
            [{name: value[row : row + 1] for name, value in about.items()} for row in range(len(patches))],
        )

    def _encode(
        self,
        tower: VisionTower,
        images: torch.Tensor,
        beside: Sequence[Sequence[torch.Tensor]],
        working: Sequence[dict[str, StreamState]],
    ) -> tuple[Encoded, list[Encoded]]:
        """Pixels of one patch of each of several streams through the model's own tower and, of `beside`, through its
        further ones, whose results are fused with it one after the other: all together, and what each of those gave."""
        encoder, shape = self._methods.encoder, tuple(images.shape[1:])
        prepared = self._prepared.get(shape)
        run = partial(encoder.encode, tower) if prepared is None else prepared.encode
        encoded = run(self._model.embed_patches(images), [one["encoder"] for one in working])
        given = []
        for place, side in enumerate(self._model.side_towers):
            own = torch.stack([pixels[place] for pixels in beside])
            hidden = side.embed_patches(own, [one[side.name] for one in working])
            prepared = self._prepared_beside.get((side.name, tuple(own.shape[1:])))
            run = partial(encoder.encode, side.tower(tuple(own.shape[1:]))) if prepared is None else prepared.encode
            given.append(run(hidden, [one[encoder_in(side)] for one in working]))
            encoded = side.fuse(encoded, given[-1], tower)
        return encoded, given

    def _is_prepared(self, shape: tuple[int, ...], further: Sequence[tuple[SideTower, tuple[int, ...]]]) -> bool:
        """Whether there are steps for pixels of these shapes in all towers."""
        beside = all((side.name, own) in self._prepared_beside for side, own in further)
        return shape in self._prepared and beside

    def _pixels_beside(self, frames: Sequence[Frame]) -> list[torch.Tensor]:
        """Pixels of one patch for each of the further towers."""
        return [side.preprocess([frame.image for frame in frames]) for side in self._model.side_towers]

    def _pixels(self, frames: Sequence[Frame]) -> list[torch.Tensor]:
        """Pixels of frames, those that the gate shrank at their share of the size."""
        whole = iter(self._model.preprocess([frame.image for frame in frames if frame.share == 1]))
        return [next(whole) if one.share == 1 else self._model.shrunk(one.image, one.share) for one in frames]

    def tower(self, shape: tuple[int, ...]) -> VisionTower:
        """The model's tower, with the taps of what the methods want to know of a frame."""
        tower = self._model.tower(shape)
        taps = self._model.taps_for(self._wanted, tower) if self._wanted else frozenset[int]()
        return tower if taps <= tower.tap_layers else replace(tower, tap_layers=tower.tap_layers | taps)
