"""One run from config to report: data, adapter, training, evaluation, and a folder that holds it all."""

import contextlib
import dataclasses
import datetime
import resource
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from sempa.batching.dataset import MAX_LENGTH, Dataset, load_dataset
from sempa.config import CAPTIONS, Config, dump_config, load_config
from sempa.data.examples import ScoredPair
from sempa.data.sts import StsTask, development_task, sample_task
from sempa.embedding.embed import embed
from sempa.embedding.readouts import check_readout
from sempa.errors import SempaError
from sempa.evaluation.budget import fit_scale
from sempa.evaluation.drift import generate_side_by_side, measure_drift
from sempa.evaluation.eval_texts import EvalText, builtin_prompts, report_texts
from sempa.evaluation.measure import (
    builtin_task,
    measure_geometry,
    measure_preference,
    measure_sts,
)
from sempa.evaluation.sts import evaluate_sts
from sempa.io.files import write_atomic, write_json
from sempa.io.lock import folder_lock
from sempa.io.origin import machine, origin, versions
from sempa.model.adapter_files import WEIGHTS_FILE, read_adapter, save_adapter, set_lora
from sempa.model.base import BaseModel, load_base
from sempa.model.forward import context_length
from sempa.model.lora import add_lora, interpolated
from sempa.model.resolve import portable_name
from sempa.model.sampling import encode_prompts
from sempa.report.run_report import terminal_table, write_report
from sempa.training.checkpoints import has_checkpoint
from sempa.training.loop import train
from sempa.training.metrics import read_metrics
from sempa.training.processes import World, join_world, local_device

# In the report: pairs of the built-in set, and new tokens of each answer shown side by side.
BUILTIN_PAIRS, GENERATION_TOKENS = 400, 24


def start_run(config: Config, command: str) -> dict:
    """Train and evaluate in a new run folder `config.output`; returns the report.

    Under torchrun all processes train; the first alone evaluates, writes and reports. Raises `SempaError` when the
    folder already holds a run, and whatever loading, training and evaluation raise.
    """
    run, world = Path(config.output), join_world()
    with _only_writer(run, world):
        if world.is_first and ((run / "report.json").exists() or has_checkpoint(run)):
            raise SempaError(
                f"output {config.output}: holds a run already; go on with it by `sempa train --resume {config.output}` "
                "or give another output=…"
            )
        if world.is_first:
            write_atomic(run / "config.yaml", dump_config(config))
        return _run(config, run, command, world)


def resume_run(run: Path, command: str) -> dict:
    """Continue an interrupted run from its latest checkpoint, bit-exactly as if it had never stopped.

    Raises `SempaError` when the folder holds no run.
    """
    if not (run / "config.yaml").is_file():
        raise SempaError(f"{run}: holds no run to resume (config.yaml is missing)")
    config = dataclasses.replace(load_config(run / "config.yaml"), output=str(run))
    world = join_world()
    with _only_writer(run, world):
        return _run(config, run, command, world)


def _only_writer(run: Path, world: World) -> AbstractContextManager[None]:
    return folder_lock(run) if world.is_first else contextlib.nullcontext()


def _run(config: Config, run: Path, command: str, world: World) -> dict:
    began = time.perf_counter()
    if world.is_first:
        write_json(run / "environment.json", {"command": command, **origin(config.device)})
    # Everything that can be wrong with the input is found before the first minute of work.
    tasks = [development_task(config.sts_dir)] if config.sts_dir else []
    notes = [note for task in tasks for note in task.notes]
    texts = report_texts(config.gsm8k)
    base = load_base(config.model, config.dtype, config.device or local_device())
    check_readout(config.readout, model=base.model)
    dataset = load_dataset(config, base.tokenizer, min(MAX_LENGTH, context_length(base.model)))
    if world.is_first:
        for note in (*notes, *dataset.notes):
            print(note, flush=True)
        print(f"training on {len(dataset.train):,}, {len(dataset.held_out):,} held out", flush=True)
    add_lora(base.model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed)

    dev = _dev_task(config, tasks)
    # The report's answers have to fit into the model's context, too.
    encode_prompts(base, builtin_prompts(), GENERATION_TOKENS)

    def score_dev() -> float:
        (result,) = evaluate_sts(lambda sentences: embed(base, sentences, readout=config.readout), [dev])
        return result.score

    loaded = time.perf_counter()
    state = train(config, base, dataset.train, run, score_dev)
    trained = time.perf_counter()
    if not world.is_first:
        return {}

    _, best = read_adapter(run / "adapter")
    set_lora(base.model, best, run / "adapter" / WEIGHTS_FILE)
    scale, curve = fit_scale(base, config.kl_budget, score_dev)
    with interpolated(base.model, scale):
        save_adapter(base.model, run / "adapter", portable_name(config.model), config.readout)
        report = _evaluate(config, base, dataset, tasks, texts)
    report["budget"] = {"kl_budget": config.kl_budget, "scale": scale, "task": dev.name, "curve": curve}
    finished = time.perf_counter()
    # What an interrupted process had spent on training before this one took over.
    spent = state["seconds"] - (trained - loaded)
    report |= {
        "model": config.model,
        "base_source": base.source,
        "config": dataclasses.asdict(config),
        "notes": notes,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "machine": {**machine(config.device), "dtype": str(base.model.dtype).removeprefix("torch.")},
        "seconds": {
            "total": finished - began + spent,
            "training": state["seconds"],
            "evaluation": finished - trained,
        },
        "peak_memory_gib": _peak_memory(),
        "training": {
            "triplets": len(dataset.train) + len(dataset.held_out) + dataset.too_long,
            "used": len(dataset.train),
            "held_out": len(dataset.held_out),
            "skipped_too_long": dataset.too_long,
            "steps": state["step"],
            "best_step": state["best_step"],
            "source": "built-in captions" if config.triplets == CAPTIONS else config.triplets,
        },
    }
    write_report(run, report, read_metrics(run / "metrics.jsonl"))
    print(terminal_table(report), flush=True)
    print(f"adapter: {run / 'adapter'}   report: {run / 'report.html'}", flush=True)
    return report


def _evaluate(
    config: Config, base: BaseModel, dataset: Dataset, tasks: list[StsTask], texts: dict[str, list[EvalText]]
) -> dict:
    tasks = [builtin_task(BUILTIN_PAIRS), *tasks]
    table, scatter, sides = measure_sts(base, tasks, config.readout)
    preference = {}
    if dataset.held_out:
        preference = measure_preference(base, dataset.held_out, config.row_tokens, config.beta)
    return {
        "sts": table,
        "preference": preference,
        "retention": measure_drift(base, texts),
        "generations": generate_side_by_side(base, builtin_prompts(), GENERATION_TOKENS),
        "scatter": scatter,
        "geometry": [measure_geometry(tasks[-1], sides)],
    }


def _dev_task(config: Config, tasks: list[StsTask]) -> StsTask:
    """A seeded sample of the development pairs: the best checkpoint is chosen by them."""
    task = tasks[0] if tasks else builtin_task(config.dev_pairs, "dev")
    drawn = sample_task(task, config.dev_pairs, config.seed)
    _check_order(f"{task.name}: the {len(drawn.pairs)} development pairs drawn from it", drawn.pairs)
    for one in tasks:
        _check_order(f"{one.name}: its {len(one.pairs)} pairs", one.pairs)
    return drawn


def _check_order(name: str, pairs: list[ScoredPair]) -> None:
    if len({pair.score for pair in pairs}) < 2:
        raise SempaError(
            f"{name} all have the score {pairs[0].score:g}, which no ranking can be compared with; raise dev_pairs or "
            "give another sts_dir"
        )


def _peak_memory() -> float:
    """The process's largest resident memory, or on CUDA the device's, in GiB."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
