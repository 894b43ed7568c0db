"""Embeddings in the shape that LlamaIndex asks for."""

import asyncio

from llama_index.core.base.embeddings.base import DEFAULT_EMBED_BATCH_SIZE, BaseEmbedding

from sempa.embedding.embedder import Embedder
from sempa.integrations.documents import DocumentEmbeddings


class LlamaIndexEmbedding(BaseEmbedding):
    """LlamaIndex's `BaseEmbedding`: `Settings.embed_model = LlamaIndexEmbedding(Embedder("smollm2-135m"))`.

    Vectors and `options` are those of `DocumentEmbeddings`: of length 1, and of a query as of a document.
    """

    # pydantic keeps what begins with an underscore out of the model's fields.
    _embeddings: DocumentEmbeddings

    def __init__(self, embedder: Embedder, batch_size: int = DEFAULT_EMBED_BATCH_SIZE, **options: object) -> None:
        super().__init__(model_name=embedder.base.source, embed_batch_size=batch_size)
        self._embeddings = DocumentEmbeddings(embedder, batch_size, **options)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embeddings.embed_query(text)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embeddings.embed_documents(texts)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embeddings.embed_query(query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)
