"""Sentences to vectors as a callable on columns, for engines that map batches over workers, such as Ray Data."""

from pathlib import Path

import numpy as np

from sempa.embedding.embedder import Embedder
from sempa.errors import SempaError


class BatchEmbedder:
    """One column of a batch embedded into another column.

    ```
    workers = ray.data.ActorPoolStrategy(size=2)
    dataset.map_batches(BatchEmbedder, fn_constructor_kwargs={"model": "smollm2-135m"}, compute=workers)
    ```

    `sempa.integrations.ray_data` writes a whole corpus so.

    The model is loaded once per worker. `column` holds the sentences, `output` gets their vectors, float32 `[n, D]`;
    the other columns stay. `options` and errors are those of `Embedder`.
    """

    def __init__(
        self,
        model: str,
        adapter: str | Path | None = None,
        column: str = "text",
        output: str = "embedding",
        batch_size: int = 32,
        normalize: bool = False,
        **options: object,
    ) -> None:
        self.column, self.output, self.batch_size, self.normalize = column, output, batch_size, normalize
        self.embedder = Embedder(model, adapter, **options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with one column more; raises `SempaError` when `column` is missing or a sentence is empty."""
        if self.column not in batch:
            raise SempaError(f"batch: found the columns {', '.join(batch)}, expected {self.column}")
        sentences = list(batch[self.column])
        return {**batch, self.output: self.embedder.encode(sentences, self.batch_size, normalize=self.normalize)}
