"""The paper's main table for any model: readouts and adapters down the side, similarity sets across."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from sempa import __version__
from sempa.data.sts import StsTask, distinct_sentences
from sempa.embedding.embed import embed, sentence_prompts
from sempa.embedding.readouts import READOUTS, check_readout
from sempa.errors import SempaError
from sempa.evaluation.statistics import compare, interval
from sempa.evaluation.sts import StsResult, bootstrap_scores, pair_cosines, score_sts
from sempa.io.files import fingerprint, read_json, write_json
from sempa.io.progress import bar
from sempa.model.adapter_files import load_adapter
from sempa.model.base import BaseModel, weights_fingerprint
from sempa.model.lora import adapter_fingerprint, remove_adapter


@dataclass(frozen=True)
class Method:
    """What a row measures: a readout, its layer (−1: the readout's own), and an adapter's folder ("" for none)."""

    readout: str
    layer: int = -1
    adapter: str = ""

    @property
    def label(self) -> str:
        """The name of the row: `prompteol`, `mean@20`, `prompteol + runs/nli/adapter`."""
        layer = "" if self.layer == -1 else f"@{self.layer}"
        return f"{self.readout}{layer}" + (f" + {self.adapter}" if self.adapter else "")


# Every other row is tested against this one.
BASELINE = Method("prompteol")


def parse_methods(readouts: str, adapter: str = "") -> list[Method]:
    """The methods of a comma-separated list of `READOUT` or `READOUT@LAYER`; `all` is every readout at its own layer.

    Raises `SempaError` for an unknown readout and a layer that is not a whole number.
    """
    methods = []
    for name in READOUTS if readouts == "all" else readouts.split(","):
        readout, at, layer = name.strip().partition("@")
        if readout not in READOUTS:
            raise SempaError(f"readout: found {readout!r}, expected some of {', '.join(READOUTS)}, or all")
        try:
            methods.append(Method(readout, int(layer) if at else -1, adapter))
        except ValueError as error:
            raise SempaError(f"readout {name.strip()!r}: layer {layer!r}, expected a whole number") from error
    return methods


def measure_rows(
    base: BaseModel, methods: Sequence[Method], tasks: Sequence[StsTask], folder: Path
) -> dict[Method, list[StsResult]]:
    """The results of each method on all tasks; `base` holds no adapter, before and after.

    The cosines of a finished row, which give all its figures, are written to `folder`, under a fingerprint of what they
    depend on (weights, dtype, kind of device, adapter, readout, layer, sentences and versions), and read from there the
    next time. Raises `SempaError` as `row_keys`, `embed` and `score_sts` do.
    """
    pairs = [(task.name, [(pair.first, pair.second) for pair in task.pairs]) for task in tasks]
    sentences = distinct_sentences(pair for task in tasks for pair in task.pairs)

    def measure(method: Method) -> dict[str, list[float]]:
        vectors = embed_as(base, method, sentences, method.label)
        return {task.name: pair_cosines(vectors, task.pairs).tolist() for task in tasks}

    rows = {}
    for method, key in row_keys(base, methods, sentences, pairs).items():
        cosines = stored(folder / f"{method.readout}-{key}.json", partial(measure, method))
        rows[method] = [score_sts(task, np.array(cosines[task.name])) for task in tasks]
    return rows


def stored(file: Path, measure: Callable[[], object]) -> object:
    """The content of the JSON file; where there is none yet, what `measure` returns, which is written to it."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(file)
    measured = measure()
    write_json(file, measured)
    return measured


def row_keys(base: BaseModel, methods: Sequence[Method], sentences: Sequence[str], data: object) -> dict[Method, str]:
    """Fingerprints of all that the methods' figures on `data` depend on.

    Raises `SempaError` for a bad readout or adapter, and one of the `sentences` that is too long for a readout.
    """
    machine = (base.model.dtype, base.model.device.type, torch.__version__, __version__)
    common = fingerprint(weights_fingerprint(base), machine, data)
    keys = {}
    for method in methods:
        with _loaded(base, method.adapter):
            check_readout(method.readout, base.model, method.layer)
            adapter = adapter_fingerprint(base.model)
        prompt = sentence_prompts(base, method.readout, ["A."])  # its words may be edited between two tables
        keys[method] = fingerprint(common, method.readout, method.layer, adapter, prompt)
    for readout in dict.fromkeys(method.readout for method in methods):
        sentence_prompts(base, readout, sentences)
    return keys


def embed_as(base: BaseModel, method: Method, sentences: Sequence[str], label: str) -> dict[str, np.ndarray]:
    """The method's embedding of each sentence; `base` holds no adapter, before and after."""
    with _loaded(base, method.adapter):
        found = embed(base, sentences, layer=method.layer, readout=method.readout, progress=label)
    return dict(zip(sentences, found))


@contextlib.contextmanager
def _loaded(base: BaseModel, adapter: str) -> Iterator[None]:
    try:
        if adapter:
            load_adapter(base.model, Path(adapter))
        yield
    finally:
        remove_adapter(base.model)


def summarise(rows: Mapping[Method, Sequence[StsResult]], resamples: int = 1000, seed: int = 0) -> dict:
    """Every figure of the table as plain data, ready for JSON; each row has results on the same tasks.

    A row has, for each of its `tasks` and for the `average`, Spearman's ρ and Pearson's r × 100, ρ of the sub-tasks,
    the 95 % interval of ρ and, under `versus`, the paired test against the `BASELINE` row where that is among `rows`.
    """
    figures, draws = {}, {}
    with bar(len(rows), "intervals", "row") as progress:
        for method, results in rows.items():
            # Those of each task, and last of their average.
            own = [{"spearman": one.score, "pearson": one.pearson, "subtasks": one.subtasks} for one in results]
            own.append({key: fmean(one[key] for one in own) for key in ("spearman", "pearson")})
            drawn = [bootstrap_scores(result, resamples, seed) for result in results]
            drawn.append(np.mean(drawn, axis=0))
            for figure, values in zip(own, drawn, strict=True):
                figure["spearman_interval"] = interval(values)
            figures[method], draws[method] = own, drawn
            progress.update()
    for method in rows:
        if BASELINE in rows and method != BASELINE:
            for figure, baseline, *drawn in zip(figures[method], figures[BASELINE], draws[method], draws[BASELINE]):
                figure["versus"] = compare(figure["spearman"], baseline["spearman"], *drawn)
    tasks = [result.task for result in next(iter(rows.values()))]
    names = [task.name for task in tasks]
    return {
        "resamples": resamples,
        "seed": seed,
        "baseline": BASELINE.label,
        "tasks": [{"name": task.name, "pairs": len(task.pairs)} for task in tasks],
        "notes": [note for task in tasks for note in task.notes],
        "rows": [
            {"label": method.label, **vars(method), "average": average, "tasks": dict(zip(names, own))}
            for method, (*own, average) in figures.items()
        ],
    }
