"""A corpus embedded by the workers of a Ray cluster: the shards and the manifest of `sempa embed`, from Ray Data."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import ray

from sempa.data.sentences import read_sentences
from sempa.embedding.corpus import SHARD_ROWS, describe, embedder_settings, write_corpus
from sempa.embedding.embedder import Embedder
from sempa.errors import SempaError
from sempa.integrations.batches import BatchEmbedder


def embed_corpus_on_ray(
    source: Path,
    folder: Path,
    *,
    model: str,
    adapter: str | Path | None = None,
    workers: int = 2,
    gpus_per_worker: float = 0,
    shard_rows: int = SHARD_ROWS,
    shard_format: str = "safetensors",
    batch_size: int = 32,
    normalize: bool = False,
    field: str | None = None,
    **options: object,
) -> dict:
    """Embed a file of any size on `workers` actors of the cluster that Ray is connected to; returns the manifest.

    Each actor loads the model once; `model`, `adapter` and `options` are those of `Embedder`, and their paths must
    exist on every node. The process that calls this reads `source`, of which the sentences lie in Ray's object store
    meanwhile, and writes `folder`: shards and manifest are those of `corpus.embed_corpus`, whose interrupted work
    this continues and the other way round. When a worker dies Ray embeds its chunks anew elsewhere; the row numbers
    that travel with the sentences are checked, so that no row is written twice or not at all.

    Raises `SempaError` as `embed_corpus` does, and when rows come back other than they were sent. A sentence that is
    too long for the model is found by its worker, not in the first reading.
    """
    resources = {"num_cpus": 1, "num_gpus": gpus_per_worker}
    arguments = {"model": model, "adapter": adapter, **options}
    about, settings = ray.get(ray.remote(_describe).options(**resources).remote(arguments))

    def encode(chunks: Iterable[list[str]]) -> Iterator[np.ndarray]:
        blocks = [ray.put(table) for table in _numbered(chunks)]
        if not blocks:
            return
        dataset = ray.data.from_arrow_refs(blocks)
        dataset.context.execution_options.preserve_order = True
        embedded = dataset.map_batches(
            BatchEmbedder,
            fn_constructor_kwargs={**arguments, "batch_size": batch_size, "normalize": normalize},
            # A chunk each time, as without Ray: batches of the same sentences give the same bits.
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=workers),
            **resources,
        )
        yield from _in_order(embedded.iter_batches(batch_size=None, batch_format="numpy"))

    def sentences() -> Iterator[str]:
        return (sentence for _, sentence in read_sentences(source, field))

    settings = {**settings, "batch_size": batch_size, "normalize": normalize}
    return write_corpus(encode, sentences, about, settings, source, folder, shard_rows, shard_format)


def _describe(arguments: dict) -> tuple[dict, dict]:
    """What the manifest says of the model, found out where the workers run."""
    embedder = Embedder(**arguments)
    return describe(embedder), embedder_settings(embedder)


def _numbered(chunks: Iterable[list[str]]) -> Iterator[pyarrow.Table]:
    """Chunks as tables of the columns `row` (from 0, over all chunks) and `text`."""
    first = 0
    for chunk in chunks:
        yield pyarrow.table({"row": np.arange(first, first + len(chunk)), "text": chunk})
        first += len(chunk)


def _in_order(batches: Iterable[dict[str, np.ndarray]]) -> Iterator[np.ndarray]:
    """The vectors of batches; raises `SempaError` unless their row numbers count on from 0."""
    first = 0
    for batch in batches:
        wanted = np.arange(first, first + len(batch["row"]))
        if not np.array_equal(batch["row"], wanted):
            raise SempaError(
                f"Ray Data: rows {batch['row'].min()} to {batch['row'].max()} came where row {first} was expected"
            )
        yield batch["embedding"]
        first += len(wanted)
