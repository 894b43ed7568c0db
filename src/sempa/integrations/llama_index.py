"""Embeddings in the shape that LlamaIndex asks for."""

import asyncio

from llama_index.core.base.embeddings.base import DEFAULT_EMBED_BATCH_SIZE, BaseEmbedding

from sempa.embedding.corpus import describe
from sempa.embedding.embedder import Embedder
from sempa.io.files import fingerprint


class LlamaIndexEmbedding(BaseEmbedding):
    """LlamaIndex's `BaseEmbedding`: `Settings.embed_model = LlamaIndexEmbedding(Embedder("smollm2-135m"))`.

    Vectors have length 1, of a query as of a document; `options` are those of `Embedder.encode`, but not `precision`.
    """

    # pydantic keeps what begins with an underscore out of the model's fields.
    _embedder: Embedder
    _options: dict[str, object]

    def __init__(self, embedder: Embedder, batch_size: int = DEFAULT_EMBED_BATCH_SIZE, **options: object) -> None:
        # An ingestion cache tells vectors apart by this name.
        name = f"{embedder.base.source}@{fingerprint(describe(embedder), options)}"
        super().__init__(model_name=name, embed_batch_size=batch_size)
        self._embedder, self._options = embedder, {"batch_size": batch_size, "normalize": True, **options}

    def _embed(self, texts: str | list[str]) -> list:
        return self._embedder.encode(texts, **self._options).tolist()

    async def _embed_in_thread(self, texts: str | list[str]) -> list:
        return await asyncio.to_thread(self._embed, texts)

    # One text or several, query or document: `encode` takes them all alike.
    _get_text_embeddings = _get_text_embedding = _get_query_embedding = _embed
    _aget_text_embeddings = _aget_text_embedding = _aget_query_embedding = _embed_in_thread
