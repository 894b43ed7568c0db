"""The paper's main table for any model: readouts and adapters down the side, similarity sets across.

The distinct sentences of all sets are embedded once for every row. Their cosines are kept as soon as that is finished;
scores, intervals and tests are worked out from them, so a second call measures only what is missing.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sempa import __version__
from sempa.data.examples import ScoredPair, distinct_sentences
from sempa.embedding.embedder import embed
from sempa.embedding.readouts import READOUTS, check_readout
from sempa.errors import SempaError
from sempa.evaluation.statistics import compare, interval
from sempa.evaluation.sts import StsResult, StsTask, draw_scores, left_out, score_sts, vector_cosines
from sempa.io.files import fingerprint, sha256, write_json
from sempa.io.progress import bar
from sempa.model.adapter_files import CONFIG_FILE, WEIGHTS_FILE, load_adapter, read_adapter
from sempa.model.base import BaseModel, weights_fingerprint
from sempa.model.lora import remove_adapter


@dataclass(frozen=True)
class Method:
    """A row of the table: a readout, the layer it is read from (−1: its own), and an adapter's folder ("" for none)."""

    readout: str
    layer: int = -1
    adapter: str = ""

    @property
    def label(self) -> str:
        """What the row is called: `prompteol`, `mean@20`, `prompteol + runs/nli/adapter`."""
        layer = "" if self.layer == -1 else f"@{self.layer}"
        return f"{self.readout}{layer}" + (f" + {self.adapter}" if self.adapter else "")


# What every other row is tested against.
BASELINE = Method("prompteol")


@dataclass(frozen=True, eq=False)
class Row:
    """A measured method: the cosines of each task's pairs, float64 `[n]`, and its seconds."""

    method: Method
    cosines: list[np.ndarray]
    seconds: float


def parse_methods(readouts: str, adapter: str = "") -> list[Method]:
    """The methods of a comma-separated list of `READOUT` or `READOUT@LAYER`; `all` is every readout at its own layer.

    Raises `SempaError` for an unknown readout and a layer that is no whole number.
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
    base: BaseModel, methods: Sequence[Method], tasks: Sequence[StsTask], folder: Path, batch_size: int = 32
) -> list[Row]:
    """Measure the methods on all tasks, one row each in their order; `base` holds no adapter, before and after.

    A finished row is written to `folder` atomically, under a fingerprint of all that decides its cosines: weights,
    dtype, kind of device, adapter, readout, layer, sentences and versions. A row that is there is read, not measured.

    Raises `SempaError` for a method that is there twice, a layer the model does not have, an adapter that cannot be
    used, a row whose cosines on a task are all the same, and what `embed` raises.
    """
    for place, method in enumerate(methods):
        if method in methods[:place]:
            raise SempaError(f"row {method.label}: is there twice")
        check_readout(method.readout, method.layer, base.model)
        if method.adapter:
            # Before the first minute of work, not after the last row that needs none.
            read_adapter(Path(method.adapter))
    files = [folder / f"{m.readout}-{key}.json" for m, key in zip(methods, _row_keys(base, methods, tasks))]
    rows = [_read_row(file, method, tasks) for file, method in zip(files, methods)]
    missing = [place for place, row in enumerate(rows) if row is None]
    with bar(len(missing) * len(distinct_sentences(_pairs(tasks))), "table", "sentence") as progress:
        for place in missing:
            progress.set_description(methods[place].label)
            row = _measure_row(base, methods[place], tasks, batch_size, progress)
            # Raises for a row without an order, which is not stored.
            _score(row, tasks)
            _write_row(files[place], row, tasks)
            rows[place] = row
            progress.write(f"{row.method.label}: {row.seconds:.0f} s", file=sys.stderr)
    return rows


def summarise(rows: Sequence[Row], tasks: Sequence[StsTask], resamples: int = 1000, seed: int = 0) -> dict:
    """Every figure of the table as plain data, ready for JSON.

    A row has for each task Spearman's ρ and Pearson's r × 100, the sub-tasks' scores, and with `resamples` the 95 %
    intervals and the paired test of ρ against the `BASELINE` row, where that is among `rows`; and the same for the
    average, in which every task counts alike. A task's draws depend on its name and `seed`, not on its neighbours.

    Raises `SempaError` as `score_sts` does.
    """
    table, scores, draws = [], [], []
    with bar(len(rows), "intervals", "row") as progress:
        for row in rows:
            results = _score(row, tasks)
            table.append({"label": row.method.label, **dataclasses.asdict(row.method), "seconds": row.seconds})
            table[-1]["subtasks"] = {result.task.name: result.subtasks for result in results if result.subtasks}
            # [correlation, task], the average before them.
            each = np.array([(result.score, result.pearson) for result in results]).T
            scores.append(np.column_stack((each.mean(1), each)))
            if resamples:
                drawn = np.array([[draw_scores(r, resamples, seed, ranks) for r in results] for ranks in (True, False)])
                draws.append(np.concatenate((drawn.mean(1, keepdims=True), drawn), 1))
            progress.update()
    baseline = next((place for place, row in enumerate(rows) if row.method == BASELINE), None)
    for place, entry in enumerate(table):
        figures = [{"spearman": float(rho), "pearson": float(r)} for rho, r in scores[place].T]
        for i, figure in enumerate(figures if resamples else []):
            figure["spearman_interval"], figure["pearson_interval"] = map(interval, draws[place][:, i])
            if baseline not in (None, place):
                measured = scores[place][0, i], scores[baseline][0, i]
                resampled = draws[place][0, i], draws[baseline][0, i]
                figure["versus"] = dataclasses.asdict(compare(*measured, *resampled))
        entry["average"], *rest = figures
        entry["tasks"] = {task.name: figure for task, figure in zip(tasks, rest)}
    sizes = ("name", "unscored", "out_of_range", "subtasks")
    return {
        "resamples": resamples,
        "seed": seed,
        "baseline": BASELINE.label,
        "tasks": [{"pairs": len(task.pairs), **{key: getattr(task, key) for key in sizes}} for task in tasks],
        "notes": left_out(tasks),
        "rows": table,
    }


def _measure_row(base: BaseModel, method: Method, tasks: Sequence[StsTask], batch_size: int, progress: tqdm) -> Row:
    began, pairs = time.perf_counter(), _pairs(tasks)
    sentences = distinct_sentences(pairs)
    try:
        if method.adapter:
            load_adapter(base.model, Path(method.adapter))
        vectors = embed(base, sentences, batch_size, method.layer, readout=method.readout, progress=progress)
    finally:
        remove_adapter(base.model)
    cosines, ends = vector_cosines(vectors, sentences, pairs), np.cumsum([len(task.pairs) for task in tasks])
    return Row(method, np.split(cosines, ends[:-1]), time.perf_counter() - began)


def _score(row: Row, tasks: Sequence[StsTask]) -> list[StsResult]:
    try:
        return [score_sts(task, cosines) for task, cosines in zip(tasks, row.cosines, strict=True)]
    except SempaError as error:
        raise SempaError(f"row {row.method.label}: {error}") from error


def _pairs(tasks: Sequence[StsTask]) -> list[ScoredPair]:
    return [pair for task in tasks for pair in task.pairs]


def _row_keys(base: BaseModel, methods: Sequence[Method], tasks: Sequence[StsTask]) -> list[str]:
    pairs = [(task.name, [(pair.first, pair.second) for pair in task.pairs]) for task in tasks]
    machine = (base.model.dtype, base.model.device.type, torch.__version__, __version__)
    common = fingerprint(weights_fingerprint(base), machine, pairs)
    adapters = {
        adapter: [sha256(Path(adapter) / name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
        for adapter in {method.adapter for method in methods if method.adapter}
    }
    return [fingerprint(common, m.readout, m.layer, adapters.get(m.adapter)) for m in methods]


def _write_row(file: Path, row: Row, tasks: Sequence[StsTask]) -> None:
    cosines = {task.name: part.tolist() for task, part in zip(tasks, row.cosines)}
    write_json(file, {**dataclasses.asdict(row.method), "seconds": row.seconds, "cosines": cosines})


def _read_row(file: Path, method: Method, tasks: Sequence[StsTask]) -> Row | None:
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        cosines = [np.array(saved["cosines"][task.name], dtype=np.float64) for task in tasks]
        whole = all(part.shape == (len(task.pairs),) for part, task in zip(cosines, tasks))
        # A damaged or missing file only costs its measurement again.
        return Row(method, cosines, float(saved["seconds"])) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
