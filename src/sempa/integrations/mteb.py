"""Embeddings under mteb: an encoder for its tasks, and scored pairs of one's own as a task that needs no data hub."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import mteb
import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction

from sempa.data.sts import StsTask
from sempa.embedding.corpus import describe
from sempa.embedding.embedder import Embedder
from sempa.embedding.readouts import embedding_width
from sempa.errors import SempaError
from sempa.io.files import fingerprint
from sempa.model.forward import context_length


class MtebEncoder(AbsEncoder):
    """An `Embedder` as mteb's encoder; `mteb.evaluate(MtebEncoder(embedder), tasks)` runs any of its tasks.

    Results are filed under `name` (`organisation/model`, by default `sempa/` and the base model's name) and a revision,
    a digest of weights, adapter, dtype, readout and layer. A text longer than the model's context is a `SempaError`.
    """

    def __init__(self, embedder: Embedder, name: str = "") -> None:
        self.embedder = embedder
        base = embedder.base
        settings = describe(embedder)["settings"] | {"device": ""}
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name or f"sempa/{Path(base.source).name}",
                "revision": fingerprint(sorted(settings.items())),
                "n_parameters": sum(p.numel() for p in base.model.parameters()),
                "max_tokens": context_length(base.model),
                "embed_dim": embedding_width(embedder.readout, base.model, embedder.layer),
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["PyTorch"],
                "use_instructions": False,
            }
        )

    def encode(self, inputs: Iterable[dict[str, list[str]]], *, batch_size: int = 64, **context: object) -> np.ndarray:
        """Embeddings of mteb's batches, in their order: float32 `[n, D]`.

        `context` (task, split, prompt type) changes nothing. An empty text, as corpora have them, is read as ".".
        """
        texts = [text if text.strip() else "." for batch in inputs for text in batch["text"]]
        return self.embedder.encode(texts, batch_size, bool(context.get("show_progress_bar")))


class LocalSts(AbsTaskSTS):
    """A task of `sempa.data.sts.read_sts` as one of mteb's, with its pairs and scores.

    Its name is `local-` and the file's, so that no file of one's own is filed as mteb's task of the same name.
    """

    def __init__(self, task: StsTask) -> None:
        columns = {
            "sentence1": [pair.first for pair in task.pairs],
            "sentence2": [pair.second for pair in task.pairs],
            "score": [pair.score for pair in task.pairs],
        }
        self.metadata = TaskMetadata(
            name=f"local-{task.name.replace(' ', '-')}",
            description=f"{len(task.pairs):,} scored pairs from a local file",
            type="STS",
            dataset={"path": "local", "revision": fingerprint(columns)},
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )
        super().__init__()
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


def evaluate_mteb(
    embedder: Embedder, tasks: Sequence[StsTask | mteb.AbsTask], folder: Path, name: str = "", batch_size: int = 64
) -> dict[str, float]:
    """Run tasks, one's own and mteb's, and keep mteb's result files in `folder`: task name → main score.

    The files are `results/NAME/REVISION/TASK.json` and `model_meta.json`, as its leaderboard reads them; what is there
    already, of the same data, is not run again. Raises `SempaError` for two tasks of one name.
    """
    encoder, cache = MtebEncoder(embedder, name), mteb.ResultCache(folder)
    ready = [LocalSts(task) if isinstance(task, StsTask) else task for task in tasks]
    names = [task.metadata.name for task in ready]
    if twins := [name for name in names if names.count(name) > 1]:
        raise SempaError(f"tasks: {twins[0]} is given twice; one result would overwrite the other")
    scores, options = {}, {"encode_kwargs": {"batch_size": batch_size}, "co2_tracker": False}
    for task in ready:
        filed = cache.load_task_result(task.metadata.name, encoder.mteb_model_meta)
        # mteb itself knows a result by the task's name alone, whatever another file of that name holds.
        stale = filed and filed.dataset_revision != task.metadata.revision
        overwrite = "always" if stale else "only-missing"
        result = mteb.evaluate(encoder, task, cache=cache, overwrite_strategy=overwrite, **options)
        scores |= {task.task_name: float(task.get_score()) for task in result.task_results}
    return scores
