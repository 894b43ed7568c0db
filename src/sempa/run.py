"""One run from config to report: data, adapter, training, evaluation, and a folder that holds it all."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote

import torch

from sempa.batching.batches import MAX_LENGTH, load_dataset
from sempa.batching.prompts import Preference
from sempa.config import CAPTIONS, Config, dump_config, load_config
from sempa.data.sts import StsTask, caption_pairs, development_task, distinct_sentences, sample_task
from sempa.embedding.embed import embed, sentence_prompts
from sempa.embedding.readouts import check_readout
from sempa.errors import SempaError
from sempa.evaluation.budget import fit_scale
from sempa.evaluation.drift import generate_side_by_side, measure_drift
from sempa.evaluation.eval_texts import BUILTIN_PROMPTS, read_prompts, report_texts
from sempa.evaluation.measure import BUILTIN, builtin_task, measure_geometry, measure_preference, measure_sts
from sempa.evaluation.sts import evaluate_sts
from sempa.io.files import write_atomic, write_json
from sempa.io.lock import folder_lock
from sempa.io.origin import origin
from sempa.model.adapter_files import WEIGHTS_FILE, read_adapter, save_adapter, set_lora
from sempa.model.base import BaseModel, load_base
from sempa.model.forward import context_length
from sempa.model.lora import add_lora, interpolated
from sempa.model.resolve import portable_name
from sempa.report.run_report import terminal_table, write_report
from sempa.training.checkpoints import checkpoint_files
from sempa.training.loop import train
from sempa.training.metrics import read_metrics
from sempa.training.processes import join_processes, local_device, process_rank

# In the report: pairs of the built-in set, and new tokens of each answer shown side by side.
BUILTIN_PAIRS, GENERATION_TOKENS = 400, 24


def start_run(config: Config, command: str) -> dict:
    """Train and evaluate in a new run folder `config.output`; returns the report.

    Under torchrun all processes train; the first alone evaluates, writes and reports. Raises `SempaError` when the
    folder already holds a run, and whatever loading, training and evaluation raise.
    """
    run = Path(config.output)
    with _claimed(run):
        names = ("adapter",) if (run / "config.yaml").exists() else ("adapter", "metrics.jsonl", "report.html")
        if checkpoint_files(run) or any((run / name).exists() for name in names):
            remedy = f"resume it with `sempa train --resume {quote(config.output)}` or give another output=…"
            raise SempaError(f"output {config.output}: already holds a run; {remedy}")
        if (run / "config.yaml").exists():
            load_config(run / "config.yaml")  # another program's is refused, not overwritten
        if process_rank() == 0:
            write_atomic(run / "config.yaml", dump_config(config))
        return _run(config, run, command)


def resume_run(run: Path, command: str) -> dict:
    """Resume a run bit-exactly from its last checkpoint, or from step 0; `SempaError` unless `run` is unfinished."""
    if not (run / "config.yaml").is_file():
        raise SempaError(f"{run}: holds no run to resume (config.yaml is missing)")
    with _claimed(run):
        return _run(replace(load_config(run / "config.yaml"), output=str(run)), run, command)


@contextmanager
def _claimed(run: Path) -> Iterator[None]:
    """Inside, all processes work on `run`, and nobody else does; raises `SempaError` when it is finished."""
    # A second report would lack what `sempa evaluate --report` has put into the first.
    if (run / "report.json").is_file():
        raise SempaError(f"{run}: holds a finished run, see {run / 'report.html'}")
    join_processes()
    with folder_lock(run) if process_rank() == 0 else nullcontext():
        yield


def _run(config: Config, run: Path, command: str) -> dict:
    began = time.perf_counter()
    # Everything that can be wrong with the input is found before the first minute of work.
    tasks = [development_task(config.sts_dir)] if config.sts_dir else []
    dev = development_sample(config, tasks)
    texts = report_texts(config.gsm8k)
    base = load_base(config.model, config.dtype, config.device or local_device())
    check_readout(config.readout, model=base.model)
    for task in tasks:  # raises for a sentence that is too long for the model
        sentence_prompts(base, config.readout, distinct_sentences(task.pairs))
    dataset = load_dataset(config, base.tokenizer, min(MAX_LENGTH, context_length(base.model)))
    scored_on = f"{len(dev.pairs):,} pairs of {dev.name}"
    notes = [*(note for task in tasks for note in task.notes), *dataset.notes, f"checkpoints are scored on {scored_on}"]
    if process_rank() == 0:
        write_json(run / "environment.json", {"command": command, **origin(base.model)})
        print(*notes, sep="\n")
        print(f"training on {len(dataset.train):,}, {len(dataset.held_out):,} held out", flush=True)
    add_lora(base.model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed)

    def score_dev() -> float:
        (result,) = evaluate_sts(lambda sentences: embed(base, sentences, readout=config.readout), [dev])
        return result.score

    loaded = time.perf_counter()
    state = train(config, base, dataset.train, run, score_dev)
    trained = time.perf_counter()
    if process_rank() != 0:
        return {}
    set_lora(base.model, read_adapter(run / "adapter")[1], run / "adapter" / WEIGHTS_FILE)  # the best, not the last
    scale, curve = fit_scale(base, config.kl_budget, score_dev)
    with interpolated(base.model, scale):
        save_adapter(base.model, run / "adapter", portable_name(config.model), config.readout)
        report = _measure(config, base, dataset.held_out, [builtin_task(BUILTIN_PAIRS), *tasks], texts)
    evaluation = time.perf_counter() - trained
    total = loaded - began + state["seconds"] + evaluation
    report |= {
        "budget": {"kl_budget": config.kl_budget, "scale": scale, "task": scored_on, "curve": curve},
        "model": config.model,
        "base_source": base.source,
        "config": asdict(config),
        "notes": notes,
        "command": command,
        **origin(base.model),
        "seconds": {"total": total, "training": state["seconds"], "evaluation": evaluation},
        "peak_memory_gib": _peak_memory(base.model.device),
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


def _measure(config: Config, base: BaseModel, held_out: list[Preference], tasks: list[StsTask], texts: dict) -> dict:
    """The report's figures of the adapter that `base` holds, and of the base without it."""
    table, scatter, sides = measure_sts(base, tasks, config.readout)
    return {
        "sts": table,
        "preference": measure_preference(base, held_out, config.row_tokens, config.beta) if held_out else {},
        "drift": measure_drift(base, texts),
        "generations": generate_side_by_side(base, read_prompts(BUILTIN_PROMPTS), GENERATION_TOKENS),
        "scatter": scatter,
        "geometry": [measure_geometry(tasks[-1], sides)],
    }


def development_sample(config: Config, tasks: list[StsTask]) -> StsTask:
    """At most `config.dev_pairs` pairs of the first task, or of the built-in ones, to choose the best checkpoint by.

    Raises `SempaError` when all have one score.
    """
    task = tasks[0] if tasks else StsTask(f"{BUILTIN} dev", caption_pairs("dev", config.dev_pairs))
    drawn = sample_task(task, config.dev_pairs, config.seed)
    if len(set(drawn.gold)) < 2:
        raise SempaError(f"{task.name}: {len(drawn.pairs)} pairs all have the score {drawn.gold[0]:g}; raise dev_pairs")
    return drawn


def _peak_memory(device: torch.device) -> float:
    """The process's largest resident memory, or on CUDA the device's, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
