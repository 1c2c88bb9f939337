"""Vectors of pictures and words from an OpenAI-compatible endpoint, for search by meaning."""

import base64
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np

from onlooker.core.errors import InputError, SourceError
from onlooker.server.webhooks import check_url

TIMEOUT_S = 30.0
LONGEST = 16384
"""Most numbers of a vector."""


@dataclass(frozen=True)
class SearchSettings:
    """How moments of the sources are kept to be found by meaning. Raises `InputError` for what cannot be."""

    every_s: float = 10.0
    """Least seconds from one kept moment of a source to the next; 0: none are kept."""
    share: float = 0.25
    """Most of what the database may hold that moments take."""
    endpoint: str | None = field(default=None, repr=False)
    """Address up to `/v1` of whoever makes vectors; None: the served model's own features."""
    key: str | None = field(default=None, repr=False)
    model: str = ""
    """What the endpoint calls its model."""
    caption: str = ""
    """A question to the served model, of whose answer the vector is made; without one, of the picture."""

    def __post_init__(self) -> None:
        if not self.every_s >= 0 or not 0 < self.share <= 1:
            raise InputError("moments are kept every 0 seconds or more, in a share of 0 to 1", given=str(self.every_s))
        if self.endpoint is not None:
            check_url(self.endpoint)
        if self.endpoint is None and (self.caption or self.model or self.key):
            raise InputError("model, key and caption are for an endpoint", do="give endpoint = 'http://HOST/v1'")

    def space(self, served: str) -> str:
        """What vectors must have in common to be compared."""
        if self.endpoint is None:
            return f"own {served}"
        return f"endpoint {self.model}{f' of: {self.caption}' if self.caption else ''}"


class Endpoint:
    """Asks for vectors. Raises `SourceError` when it is not there, refuses, or gives what is no vector."""

    def __init__(self, settings: SearchSettings) -> None:
        headers = {} if settings.key is None else {"authorization": f"Bearer {settings.key}"}
        self._settings = settings
        self._client = httpx2.AsyncClient(base_url=str(settings.endpoint), headers=headers, timeout=TIMEOUT_S)

    async def of_words(self, text: str) -> np.ndarray:
        """The vector of a text, as every such endpoint makes them."""
        return await self._ask({"input": [text]})

    async def of_picture(self, jpeg: bytes) -> np.ndarray:
        """The vector of a picture, asked for as vLLM's server has it: as a message with an image."""
        url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        part = {"type": "image_url", "image_url": {"url": url}}
        return await self._ask({"messages": [{"role": "user", "content": [part]}]})

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def _ask(self, body: dict[str, Any]) -> np.ndarray:
        try:
            body = body | {"model": self._settings.model, "encoding_format": "float"}
            reply = await self._client.post("embeddings", json=body)
            reply.raise_for_status()
            vector = np.asarray(reply.json()["data"][0]["embedding"], np.float32)
        except httpx2.HTTPStatusError as error:
            said = f"it said {error.response.status_code}"
            raise SourceError("the embedding endpoint refuses", given=said) from None
        except httpx2.HTTPError as error:
            raise SourceError("the embedding endpoint cannot be reached", given=type(error).__name__) from None
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise SourceError("the embedding endpoint gives no vector", given=type(error).__name__) from None
        if vector.ndim != 1 or not 0 < len(vector) <= LONGEST or not np.isfinite(vector).all() or not vector.any():
            raise SourceError("the embedding endpoint gives no vector", given=f"shape {vector.shape}")
        return vector
