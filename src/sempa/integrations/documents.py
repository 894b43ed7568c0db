"""Embeddings in the shape that LangChain asks for."""

from langchain_core.embeddings import Embeddings

from sempa.embedding.embedder import Embedder
from sempa.errors import SempaError


class DocumentEmbeddings(Embeddings):
    """LangChain's `Embeddings` for a vector store; its asynchronous methods run these in a thread.

    Vectors have length 1, so that cosine, dot product and Euclidean distance rank alike; a query is embedded as a
    document is. `options` are those of `Embedder.encode`, but not `precision`: stores compare numbers. With
    `on_empty="zero"` an empty chunk is the zero vector, with `dim` vectors are shorter.
    `sempa.integrations.llama_index` has the same for LlamaIndex.
    """

    def __init__(self, embedder: Embedder, **options: object) -> None:
        self.embedder, self.options = embedder, {"normalize": True, **options}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector of D numbers per text; raises `SempaError` as `encode` does, and for a single string."""
        if isinstance(texts, str):
            raise SempaError("embed_documents: found one string, expected a list of them; embed_query takes one")
        return self.embedder.encode(texts, **self.options).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text, D numbers."""
        return self.embedder.encode(text, **self.options).tolist()
