"""What alignment does to the embedding space: its geometry, a few topics, its key tokens; base beside aligned."""

from collections.abc import Sequence

import numpy as np

from sempa.data.examples import distinct_sentences
from sempa.embedding.embedder import embed
from sempa.embedding.readouts import passes_final_norm
from sempa.evaluation.geometry import compare_geometry, principal_plane, unit_vectors
from sempa.evaluation.key_tokens import compare_key_tokens
from sempa.evaluation.sts import StsTask, vector_cosines
from sempa.evaluation.topics import GROUPS
from sempa.model.base import BaseModel
from sempa.model.lora import adapter_disabled


def embed_sides(
    base: BaseModel, sentences: Sequence[str], readout: str = "prompteol", layer: int = -1, aligned: bool = True
) -> dict[str, np.ndarray]:
    """Embeddings `[n, D]` with the adapter off, under `base`, and on, under `aligned` where that is asked for."""
    with adapter_disabled(base.model):
        sides = {"base": embed(base, sentences, layer=layer, show_progress=True, readout=readout)}
    if aligned:
        sides["aligned"] = embed(base, sentences, layer=layer, show_progress=True, readout=readout)
    return sides


def project_topics(base: BaseModel, readout: str = "prompteol", layer: int = -1, aligned: bool = True) -> dict:
    """The built-in sentences of a few topics on each side's principal plane.

    `topic` names the topic of each of n sentences; a side has `points` `[n, 2]` and the planes' `shares` of variance.
    """
    sentences = [sentence for group in GROUPS.values() for sentence in group]
    projected: dict = {"topic": [topic for topic, group in GROUPS.items() for _ in group]}
    for side, vectors in embed_sides(base, sentences, readout, layer, aligned).items():
        points, shares = principal_plane(unit_vectors(vectors))
        projected[side] = {"points": points.round(5).tolist(), "shares": shares.tolist()}
    return projected


def measure_space(
    base: BaseModel, task: StsTask, sides: dict[str, np.ndarray], readout: str = "prompteol", layer: int = -1
) -> dict:
    """A report's `geometry`, `topics` and `key_tokens`, of embeddings `[n, D]` of the task's n distinct sentences."""
    sentences = distinct_sentences(task.pairs)
    tokens = compare_key_tokens(base, sentences, sides, normed=passed_final_norm(base, readout, layer))
    return {
        "geometry": [compare_geometry(task.name, task.pairs, sentences, sides)],
        "topics": project_topics(base, readout, layer, "aligned" in sides),
        "key_tokens": {"task": task.name, **tokens},
    }


def measure_tasks(
    base: BaseModel, tasks: Sequence[StsTask], readout: str = "prompteol", layer: int = -1, aligned: bool = True
) -> dict:
    """`geometry` of every task, `cosines` of their pairs and `topics`; a sentence that tasks share is embedded once."""
    sentences = distinct_sentences(pair for task in tasks for pair in task.pairs)
    sides = embed_sides(base, sentences, readout, layer, aligned)
    row = {sentence: i for i, sentence in enumerate(sentences)}
    geometry, cosines = [], []
    for task in tasks:
        own = distinct_sentences(task.pairs)
        rows = [row[sentence] for sentence in own]
        geometry.append(compare_geometry(task.name, task.pairs, own, {side: v[rows] for side, v in sides.items()}))
        measured = {side: vector_cosines(v, sentences, task.pairs).tolist() for side, v in sides.items()}
        cosines.append({"task": task.name, "gold": [pair.score for pair in task.pairs], **measured})
    return {"geometry": geometry, "cosines": cosines, "topics": project_topics(base, readout, layer, aligned)}


def passed_final_norm(base: BaseModel, readout: str, layer: int) -> bool:
    """Whether a readout's embeddings from this layer have passed the final norm: only the last layer's have."""
    return passes_final_norm(readout, layer, base.model)
