"""Embed a corpus on the workers of a Ray cluster: the shards and the manifest of `sempa embed`, from Ray Data.

pip install 'ray[data]'
python examples/embed_on_ray.py corpus.jsonl.gz vectors --adapter runs/smollm2_captions/adapter --workers 8
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import ray

from sempa import Embedder, SempaError
from sempa.commands.common import at_least, base_name
from sempa.commands.embed import add_arguments
from sempa.embedding.corpus import SHARD_ROWS, embed_corpus

# Workers get this module with their work: they need not find the file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class BatchEmbedder:
    """What `map_batches` calls: the column `text` of a batch embedded into its column `embedding`, float32 `[n, D]`.

    The model is loaded once per worker; `options` are those of `Embedder`.
    """

    def __init__(self, batch_size: int = 64, normalize: bool = False, **options: object) -> None:
        self.batch_size, self.normalize = batch_size, normalize
        self.embedder = Embedder(**options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with one column more."""
        vectors = self.embedder.encode(list(batch["text"]), self.batch_size, normalize=self.normalize)
        return {**batch, "embedding": vectors}


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
    batch_size: int = 64,
    normalize: bool = False,
    field: str | None = None,
    skip_empty: bool = False,
    **options: object,
) -> dict:
    """Embed a file of any size on `workers` actors of the cluster that Ray is connected to; returns the manifest.

    Each actor loads the model once; `model`, `adapter` and `options` are those of `Embedder`, and their paths must
    exist on every node. The calling process loads the model, too, and should run on the same kind of device as the
    workers. It reads `source`, keeps the sentences in Ray's object store, and writes `folder` with the shards and the
    manifest of `corpus.embed_corpus`; either function continues what the other left unfinished. When a worker dies, Ray
    embeds its chunks again elsewhere; row numbers travel with the sentences and are checked, so that no row is written
    twice or not at all.

    Raises `SempaError` as `embed_corpus` does, and when rows are lost, repeated or out of order.
    """
    resources = {"num_cpus": 1, "num_gpus": gpus_per_worker}
    arguments = {"model": model, "adapter": adapter, **options}

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

    settings = {"shard_rows": shard_rows, "shard_format": shard_format, "batch_size": batch_size}
    settings |= {"normalize": normalize, "field": field, "skip_empty": skip_empty}
    return embed_corpus(Embedder(**arguments), source, folder, encode=encode, **settings)


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


def main(argv: Sequence[str] | None = None) -> None:
    """Embed the file; bad input ends with one sentence and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    # A corpus is always in shards here.
    parser.epilog = None
    parser.set_defaults(shard_rows=SHARD_ROWS)
    parser.add_argument("--workers", type=at_least(1), default=2, help="processes, a model each (default %(default)s)")
    parser.add_argument("--gpus-per-worker", type=float, default=0, help="of each process (default %(default)s)")
    parser.add_argument("--address", help="of the cluster, such as auto (default: one on this machine)")
    given = parser.parse_args(argv)
    try:
        options = {name: value for name, value in vars(given).items() if name not in ("input", "output", "address")}
        options["model"] = base_name(given.model, given.adapter)
        ray.init(given.address)
        manifest = embed_corpus_on_ray(given.input, given.output, **options)
    except (SempaError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{manifest['settings']['input']['rows']:,} embeddings in {len(manifest['shards']):,} shards: {given.output}")


if __name__ == "__main__":
    main()
