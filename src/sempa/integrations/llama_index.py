"""Embeddings in the shape that LlamaIndex asks for."""

import asyncio

from llama_index.core.base.embeddings.base import DEFAULT_EMBED_BATCH_SIZE, BaseEmbedding

from sempa.embedding.embedder import Embedder


class LlamaIndexEmbedding(BaseEmbedding):
    """LlamaIndex's `BaseEmbedding`: `Settings.embed_model = LlamaIndexEmbedding(Embedder("smollm2-135m"))`.

    Vectors have length 1, of a query as of a document; `options` are those of `Embedder.encode`.
    """

    # pydantic keeps what begins with an underscore out of the model's fields.
    _embedder: Embedder
    _options: dict[str, object]

    def __init__(self, embedder: Embedder, batch_size: int = DEFAULT_EMBED_BATCH_SIZE, **options: object) -> None:
        super().__init__(model_name=embedder.base.source, embed_batch_size=batch_size)
        self._embedder, self._options = embedder, {"batch_size": batch_size, "normalize": True, **options}

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.encode(texts, **self._options).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    # SemPA knows one kind of sentence.
    _get_query_embedding, _aget_query_embedding = _get_text_embedding, _aget_text_embedding
