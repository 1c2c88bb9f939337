"""An engine whose streams begin without a prompt: with `sliding_window`, window attention that has no sinks."""

from onlooker.engine import Engine
from onlooker.kvstore import KVStore

WITHOUT_PROMPT = "without_prompt"
"""Behind the name of a memory in `benchmarks.half_hour`."""


class NoPrompt(Engine):
    """The first frame is the first thing that is remembered, and leaves like any other."""

    def new_store(self) -> KVStore:
        """An empty one."""
        return KVStore(self.model.spec, self.model.rotary, **self._stored)
