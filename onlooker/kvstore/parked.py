"""The blocks of a stream that are not on the device: in the host's memory and, beyond its budget, on the disk."""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from onlooker.core import registry
from onlooker.core.contracts import Codec, ModelSpec
from onlooker.core.errors import CapacityError
from onlooker.kvstore.catalog import Catalog
from onlooker.kvstore.coded import Coded, encoded_bytes, hold, laid
from onlooker.kvstore.disk import Disk, DiskTier


@dataclass(eq=False)
class Parked:
    """Blocks by number. Those that were parked first go to the disk first, as they lie or as its own codec says."""

    spec: ModelSpec
    host_codec: Codec
    host_budget_bytes: int | None
    tier: DiskTier | None
    """Where the disk is; None: there is none."""
    disk_codec: Codec
    blocks: Catalog[Coded] = field(init=False, default_factory=Catalog)
    host_bytes: int = field(init=False, default=0)
    disk_bytes: int = field(init=False, default=0)
    _on_host: dict[int, None] = field(init=False, default_factory=dict)
    """In the order in which they were parked."""

    def __post_init__(self) -> None:
        self._disk = None if self.tier is None else Disk(self.tier)

    def blank(self) -> "Parked":
        """None yet, by the same rules."""
        return Parked(self.spec, self.host_codec, self.host_budget_bytes, self.tier, self.disk_codec)

    def twin(self) -> "Parked":
        """The same blocks, which are shared, in a list of its own."""
        twin = self.blank()
        twin.blocks, twin._on_host = self.blocks.copy(), self._on_host.copy()
        twin.host_bytes, twin.disk_bytes = self.host_bytes, self.disk_bytes
        return twin

    def close(self) -> None:
        """Write no more: files go with the last block in them."""
        if self._disk is not None:
            self._disk.close()

    def check(self, sizes: Collection[int], gone: Collection[int]) -> None:
        """Raise `CapacityError` when blocks of so many tokens do not fit, once others are gone, and there is no disk
        for them."""
        needed = self.host_bytes + sum(encoded_bytes(self.spec, self.host_codec, size) for size in sizes)
        needed -= sum(self.blocks[block].nbytes for block in gone if block in self._on_host)
        if self.host_budget_bytes is not None and self._disk is None and sizes and needed > self.host_budget_bytes:
            raise CapacityError(
                "the parked keys and values do not fit in host memory",
                given=f"{needed} bytes needed, {self.host_budget_bytes} allowed",
                do="raise the host budget, add a disk tier, or let the memory forget (for example rekv:max_parked=...)",
            )

    def is_sure_of_room(self, num_bytes: int) -> bool:
        """Whether the host's memory holds so many bytes more: what a disk does nobody knows before."""
        return self.host_budget_bytes is None or self.host_bytes + num_bytes <= self.host_budget_bytes

    def spilled(self, more: Mapping[int, Coded], gone: Collection[int] = ()) -> dict[int, Coded]:
        """What has to lie on the disk when these blocks come and others go, written there. Changes nothing here. Raises
        `CapacityError` when the disk is full."""
        found: dict[int, Coded] = {}
        if self._disk is None or self.host_budget_bytes is None:
            return found
        over = self.host_bytes + sum(coded.nbytes for coded in more.values() if not coded.on_disk)
        over -= self.host_budget_bytes + sum(self.blocks[block].nbytes for block in gone if block in self._on_host)
        there = ((block, self.blocks[block]) for block in self._on_host if block not in gone)
        for block, coded in itertools.chain(there, more.items()):
            if over <= 0:
                break
            if not coded.on_disk:
                found[block] = self.written(coded)
                over -= coded.nbytes
        return found

    def written(self, coded: Coded) -> Coded:
        """A block of the host's memory, on the disk. Raises `CapacityError` when it is full."""
        assert self._disk is not None, "there is no disk"
        if registry.describe(coded.codec) != registry.describe(self.disk_codec):
            parts = self.disk_codec.encode(*coded.codec.decode(coded.parts, self.spec.dtype))
            coded = hold(self.spec, self.disk_codec, coded.num_tokens, parts)
        return laid(self.spec, coded.codec, coded.num_tokens, self._disk.put(coded.slab), on_disk=True)

    def put(self, block: int, coded: Coded) -> None:
        """A block is parked, or lies elsewhere from now on."""
        if block in self.blocks:
            self.remove(block)
        self.blocks[block] = coded
        if coded.on_disk:
            self.disk_bytes += coded.nbytes
        else:
            self.host_bytes += coded.nbytes
            self._on_host[block] = None

    def remove(self, block: int) -> None:
        """A block is gone."""
        coded = self.blocks.remove(block)
        if coded.on_disk:
            self.disk_bytes -= coded.nbytes
        else:
            self.host_bytes -= coded.nbytes
            del self._on_host[block]

    def restore(self, block: int, num_tokens: int, parts: Mapping[str, Tensor], codec: Codec, on_disk: bool) -> None:
        """A block of a snapshot, as `codec` wrote it. One that lay on the disk lies there again, if there is one; it
        is encoded anew only where another codec is in use. Raises `CapacityError`."""
        to_disk = on_disk and self._disk is not None
        own = self.disk_codec if to_disk else self.host_codec
        if registry.describe(codec) != registry.describe(own):
            parts = own.encode(*codec.decode(parts, self.spec.dtype))
        coded = hold(self.spec, own, num_tokens, parts)
        new = {block: self.written(coded) if to_disk else coded}
        if not to_disk:
            self.check([num_tokens], ())
        for number, one in (new | self.spilled(new)).items():
            self.put(number, one)
