"""Sentence embeddings: the embedder, its readouts, corpora of any size."""
