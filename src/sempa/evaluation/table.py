"""The paper's main table for any model: readouts and adapters down the side, similarity sets across.

The cosines of a row are stored as soon as it is measured. Scores, intervals and tests are computed from them, so a
second call measures only the rows that are missing.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sempa import __version__
from sempa.data.examples import distinct_sentences
from sempa.data.sts import StsTask
from sempa.embedding.embedder import embed
from sempa.embedding.readouts import READOUTS, check_readout
from sempa.errors import SempaError
from sempa.evaluation.statistics import compare, interval
from sempa.evaluation.sts import StsResult, bootstrap_scores, encode_distinct, pair_cosines, score_sts
from sempa.io.files import fingerprint, sha256, write_json
from sempa.io.progress import bar
from sempa.model.adapter_files import CONFIG_FILE, WEIGHTS_FILE, load_adapter, read_adapter
from sempa.model.base import BaseModel, weights_fingerprint
from sempa.model.lora import remove_adapter


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

    The cosines of a finished row are written to `folder`, under a fingerprint of all that decides them: weights, dtype,
    kind of device, adapter, readout, layer, sentences and versions. Cosines that are already there are read instead.

    Raises `SempaError` for a method given twice, a layer that the model does not have, an adapter that cannot be used,
    a row whose cosines on a task are all the same, and whatever `embed` raises.
    """
    check_methods(base, methods)
    pairs = [(task.name, [(pair.first, pair.second) for pair in task.pairs]) for task in tasks]
    rows = {}
    for method, key in zip(methods, row_keys(base, methods, pairs)):
        file = folder / f"{method.readout}-{key}.json"
        stored = _read_cosines(file, tasks)
        cosines = stored or _measure_cosines(base, method, tasks)
        try:
            rows[method] = [score_sts(task, own) for task, own in zip(tasks, cosines)]
        except SempaError as error:
            raise SempaError(f"row {method.label}: {error}") from error
        if stored is None:
            write_json(file, {task.name: own.tolist() for task, own in zip(tasks, cosines)})
    return rows


def check_methods(base: BaseModel, methods: Sequence[Method]) -> None:
    """Raise `SempaError` for a method given twice, a layer that the model does not have, an unusable adapter."""
    for place, method in enumerate(methods):
        if method in methods[:place]:
            raise SempaError(f"row {method.label}: is there twice")
        check_readout(method.readout, method.layer, base.model)
        if method.adapter:
            # A broken adapter is found before the first row is measured.
            read_adapter(Path(method.adapter))


def row_keys(base: BaseModel, methods: Sequence[Method], data: object) -> list[str]:
    """For each method a fingerprint of all that decides its figures on `data`."""
    machine = (base.model.dtype, base.model.device.type, torch.__version__, __version__)
    common = fingerprint(weights_fingerprint(base), machine, data)
    adapters = {
        adapter: [sha256(Path(adapter) / name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
        for adapter in {method.adapter for method in methods if method.adapter}
    }
    return [fingerprint(common, m.readout, m.layer, adapters.get(m.adapter)) for m in methods]


@contextlib.contextmanager
def holding_adapter(base: BaseModel, method: Method) -> Iterator[None]:
    """Inside, `base` holds the method's adapter, if it has one; afterwards it holds none."""
    try:
        if method.adapter:
            load_adapter(base.model, Path(method.adapter))
        yield
    finally:
        remove_adapter(base.model)


def summarise(rows: Mapping[Method, Sequence[StsResult]], resamples: int = 1000, seed: int = 0) -> dict:
    """Every figure of the table as plain data, ready for JSON; each row has results on the same tasks.

    A row has for each task Spearman's ρ and Pearson's r × 100 and the scores of the sub-tasks. With `resamples` it also
    has the 95 % interval of ρ and, under `versus`, the paired test against the `BASELINE` row where that is among
    `rows`. `average` holds the same for the mean of the tasks.
    """
    figures = {method: _figures(results) for method, results in rows.items()}
    draws = _draws(rows, resamples, seed) if resamples else {}
    for method, drawn in draws.items():
        for place, (figure, values) in enumerate(zip(figures[method], drawn)):
            figure["spearman_interval"] = interval(values)
            if BASELINE in rows and method != BASELINE:
                other = figures[BASELINE][place]["spearman"]
                test = compare(figure["spearman"], other, values, draws[BASELINE][place])
                figure["versus"] = dataclasses.asdict(test)
    tasks = [result.task for result in next(iter(rows.values()))]
    return {
        "resamples": resamples,
        "seed": seed,
        "baseline": BASELINE.label,
        "tasks": [
            {"name": task.name, "pairs": len(task.pairs), "subtasks": list(dict.fromkeys(task.subtasks))}
            for task in tasks
        ],
        "notes": [note for task in tasks for note in task.notes],
        "rows": [
            {
                "label": method.label,
                **dataclasses.asdict(method),
                "average": average,
                "tasks": {task.name: figure for task, figure in zip(tasks, each)},
                "subtasks": {result.task.name: result.subtasks for result in rows[method] if result.subtasks},
            }
            for method, (average, *each) in figures.items()
        ],
    }


def _figures(results: Sequence[StsResult]) -> list[dict]:
    """Both correlations of the average and of each task, in this order."""
    each = [{"spearman": result.score, "pearson": result.pearson} for result in results]
    average = {name: sum(figure[name] for figure in each) / len(each) for name in ("spearman", "pearson")}
    return [average, *each]


def _draws(rows: Mapping[Method, Sequence[StsResult]], resamples: int, seed: int) -> dict[Method, list[np.ndarray]]:
    """The bootstrap draws of the average and of each task, in this order."""
    draws = {}
    with bar(len(rows), "intervals", "row") as progress:
        for method, results in rows.items():
            drawn = [bootstrap_scores(result, resamples, seed) for result in results]
            draws[method] = [np.mean(drawn, axis=0), *drawn]
            progress.update()
    return draws


def _measure_cosines(base: BaseModel, method: Method, tasks: Sequence[StsTask]) -> list[np.ndarray]:
    pairs = [pair for task in tasks for pair in task.pairs]
    with bar(len(distinct_sentences(pairs)), method.label, "sentence") as progress, holding_adapter(base, method):
        vectors = encode_distinct(
            lambda texts: embed(base, texts, layer=method.layer, readout=method.readout, progress=progress), pairs
        )
    return [pair_cosines(vectors, task.pairs) for task in tasks]


def _read_cosines(file: Path, tasks: Sequence[StsTask]) -> list[np.ndarray] | None:
    """The stored cosines of each task, None where they are missing or damaged, which only costs their measurement."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        cosines = [np.array(saved[task.name], dtype=np.float64) for task in tasks]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cosines if all(own.shape == (len(task.pairs),) for own, task in zip(cosines, tasks)) else None
