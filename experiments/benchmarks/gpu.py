"""All that wants a GPU, in ten minutes on one card: correctness, kernels, steps of 1 B and 8 B, embedding, a run.

    .venv/bin/python experiments/benchmarks/gpu.py           # one H100 or H200
    .venv/bin/python experiments/benchmarks/gpu.py --tiny    # the same sections on a CPU, with tiny models

The large models have random weights, made on the device. What fails or is missing is kept with its reason, and the rest
goes on. Results are written after every section: JSON, a table (.md) and a picture (.svg).
"""

import argparse
import gc
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import embedding
import gatherer
import race
import torch
from draw import bars
from torch import Tensor
from training import ALPHA, RANK, trl_trainer_step
from transformers import AutoTokenizer, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from sempa.batching.batches import Batch, Batches
from sempa.batching.packing import pack_texts
from sempa.batching.prompts import encode_triplet
from sempa.config import Config
from sempa.data.triplets import caption_triplets
from sempa.errors import SempaError
from sempa.io.files import write_atomic, write_json
from sempa.kernels import token_logprobs
from sempa.model.base import computes_bfloat16
from sempa.model.forward import hidden_states, row_states
from sempa.model.layers import checkpoint_blocks
from sempa.model.lora import adapter_disabled, add_lora, block_linears, lora_parameters
from sempa.model.resolve import first_line, resolve_model
from sempa.report.plots import available
from sempa.run import start_run
from sempa.training.base_samples import BaseSample
from sempa.training.step import backward, contrast_loss, make_optimizer, preference_loss, retention_loss, train_step

for neighbour in ("plan", "reliability"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / neighbour))
from plan import GPUS  # noqa: E402
from shapes import empty_model, model_config  # noqa: E402
from tiny import make_folder, make_tokenizer  # noqa: E402

# No section begins after so many seconds.
BUDGET = 540
PEERS = ("liger-kernel", "cut-cross-entropy")
DPO = Config(preference=1.0, preference_fraction=1.0, contrast=0.0, retention=0.0, lora_rank=RANK, lora_alpha=ALPHA)
ALL_LOSSES = replace(DPO, anchor=0.5, contrast=1.0, retention=10.0, row_tokens=256)


# Llama-3.2-1B's shape; plan.py has that of 8 B.
ONE_BILLION = LlamaConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class Setting:
    """What the sections run on: by default a GPU's sizes."""

    device: str
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    # Embedding and the run need a trained model.
    model: str = "smollm2-135m"
    dtype: torch.dtype = torch.bfloat16
    rounds: int = 3
    shapes: dict[str, LlamaConfig] = field(
        default_factory=lambda: {"1 B": ONE_BILLION, "8 B": model_config("meta-llama/Meta-Llama-3-8B-Instruct")}
    )
    row_tokens: int = 4096
    triplets: int = 256
    # Rows, width and vocabulary.
    kernel_sizes: Sequence[tuple[int, int, int]] = ((4096, 2048, 128_256), (4096, 4096, 128_256), (2048, 576, 49_152))
    sentences: int = 1024
    run: dict[str, object] = field(default_factory=dict)

    @property
    def dtypes(self) -> list[torch.dtype]:
        """What is checked for correctness."""
        return list(dict.fromkeys((torch.float32, self.dtype)))


def full_setting(device: str, folder: Path) -> Setting:
    """A GPU's sizes; where SmolLM2 is not at hand, the sections that need no trained model get another tokenizer."""
    try:
        return Setting(device, folder, AutoTokenizer.from_pretrained(resolve_model("smollm2-135m")))
    except SempaError:
        return Setting(device, folder, make_tokenizer())


def tiny_setting(device: str, folder: Path) -> Setting:
    """Two and three narrow blocks, and a few texts."""
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Setting(
        device,
        folder,
        make_tokenizer(),
        model=str(make_folder(folder / "model")),
        dtype=torch.bfloat16 if computes_bfloat16(torch.device(device)) else torch.float32,
        rounds=1,
        shapes={f"{size} B": LlamaConfig(**sizes, num_hidden_layers=depth) for size, depth in ((1, 2), (8, 3))},
        row_tokens=512,
        triplets=4,
        kernel_sizes=((64, 32, 320),),
        sentences=16,
        run={"triplet_limit": 8, "held_out": 2, "dev_pairs": 4, "eval_every": 1000, "retention": 0.0},
    )


# Correctness


def check_packing(s: Setting) -> list[dict]:
    """The states of a packed row beside those of its sequences in rows of their own."""
    rows = []
    for dtype in s.dtypes:
        model = _few_blocks(s, dtype)
        row = _batch(s, DPO, 8).rows[0].packed
        tokens, places = row.separate()
        with torch.no_grad():
            packed = row_states(model, row)
            separate = hidden_states(model, tokens.to(s.device)).flatten(0, 1)[places.to(s.device)]
        rows.append(_verdict("packed row, states", dtype, [packed], [separate]))
    return rows


def check_kernel(s: Setting) -> list[dict]:
    """Log-probabilities and their gradient beside float64's, from the same rounded numbers."""
    rows, (n, d, v) = [], s.kernel_sizes[0]
    for dtype in s.dtypes:
        hidden, weight, targets = _kernel_inputs(s, dtype, min(n, 256), d, v)
        exact = hidden.detach().double().requires_grad_()
        expected = (exact @ weight.double().T).log_softmax(1).gather(1, targets[:, None])[:, 0]
        found = token_logprobs(hidden, weight, targets)
        gradients = (torch.autograd.grad(value.sum(), x)[0] for value, x in ((found, hidden), (expected, exact)))
        rows.append(_verdict("log-probabilities", dtype, [found], [expected]))
        rows.append(_verdict("their gradient", dtype, *([gradient] for gradient in gradients)))
    return rows


def check_gradients(s: Setting) -> list[dict]:
    """The gradient of all three losses on the device beside the CPU's in float64, which tests compare with autograd."""
    rows = []
    for dtype in s.dtypes:
        expected = _step_gradients(s, _few_blocks(s, dtype, "cpu").double())
        for recomputed in (False, True):
            model = _few_blocks(s, dtype)
            if recomputed:
                checkpoint_blocks(model)
            what = f"gradient of a step{', recomputed' * recomputed}"
            rows.append(_verdict(what, dtype, _step_gradients(s, model), expected))
    return rows


def _step_gradients(s: Setting, model: PreTrainedModel) -> list[Tensor]:
    batch = _batch(s, ALL_LOSSES, 8)
    packed = pack_texts([preference.words[0] for preference in batch.preferences], 128)[0]
    with torch.no_grad(), adapter_disabled(model):
        sample = BaseSample(packed, row_states(model, packed))
    losses = [partial(preference_loss, ALL_LOSSES, model, row, batch.ranked) for row in batch.rows]
    losses.append(partial(contrast_loss, ALL_LOSSES, model, batch.sentences, batch.texts))
    losses.append(partial(retention_loss, ALL_LOSSES, model, sample))
    parameters = list(lora_parameters(model).values())
    backward(model, losses, parameters, in_order=True)
    return [parameter.grad for parameter in parameters]


def _few_blocks(s: Setting, dtype: torch.dtype, device: str | None = None) -> PreTrainedModel:
    """Two blocks of the first shape with an adapter that is nowhere zero: equal numbers on every device."""
    torch.manual_seed(0)
    shape = LlamaConfig(**s.shapes["1 B"].to_dict() | {"num_hidden_layers": 2, "vocab_size": len(s.tokenizer)})
    model = empty_model(shape, torch.float32, "cpu").to(dtype).to(device or s.device).eval()
    add_lora(model, RANK, ALPHA)
    generator = torch.Generator().manual_seed(1)
    for parameter in lora_parameters(model).values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5 / 4)
        parameter.requires_grad_(True)
    return model


def _verdict(what: str, dtype: torch.dtype, found: list[Tensor], expected: list[Tensor]) -> dict:
    """Relative error in norm; rounding stays far below the root of the dtype's precision, a fault far above."""
    a, b = (torch.cat([x.detach().double().flatten().cpu() for x in side]) for side in (found, expected))
    error, limit = ((a - b).norm() / b.norm()).item(), torch.finfo(dtype).eps ** 0.5
    return {"what": what, "dtype": _name(dtype), "relative error": error, "limit": limit, "passes": error < limit}


# Speed


def race_kernels(s: Setting) -> list[dict]:
    """Log-probabilities forward and backward beside the bare products and every peer that is there."""
    ways = gatherer.GATHERERS | {"Liger": gatherer._liger, "cut-cross-entropy": gatherer._cut}
    rows = []
    for n, d, v in s.kernel_sizes:
        inputs = _kernel_inputs(s, s.dtype, n, d, v)
        makers = {name: partial(gatherer._bare, *inputs[:2], False, again) for name, again in gatherer.BARE.items()}
        makers |= {name: partial(gatherer._forward_backward, way, *inputs) for name, way in ways.items()}
        rows += [{"N": n, "D": d, "V": v, **row} for row in _measure(s, makers)]
    return rows


def race_steps(s: Setting, size: str) -> list[dict]:
    """A DPO step of a model with random weights: blocks kept or recomputed, and TRL's with Liger's kernels."""
    batch = _batch(s, replace(DPO, row_tokens=s.row_tokens), s.triplets)
    tokens, (peak, of) = sum(len(row.packed.tokens) for row in batch.rows), _peak_flops(s)
    flops = _step_flops(s.shapes[size], tokens, sum(len(row.target) for row in batch.rows))
    work = {"triplets/s": s.triplets, "tokens/s": tokens, f"MFU, % of {of}": 100 * flops / peak}
    ways = {"sempa": False, "sempa, recomputed": True}
    rows = _measure(s, {name: partial(_sempa_step, s, size, batch, again) for name, again in ways.items()}, work)
    name = "TRL + Liger" if s.device.startswith("cuda") else "TRL"
    theirs = {f"{name}, batch {count}": partial(_trl_step, s, size, count) for count in (4, 16)}
    return rows + _measure(s, theirs, {"triplets/s": s.triplets})


def _sempa_step(s: Setting, size: str, batch: Batch, recomputed: bool) -> Callable[[], object]:
    config, model = replace(DPO, row_tokens=s.row_tokens), _random_model(s, size)
    add_lora(model, RANK, ALPHA)
    if recomputed:
        checkpoint_blocks(model)
    return partial(train_step, config, model, make_optimizer(config, model), batch, [], 0, 1000)


def _trl_step(s: Setting, size: str, batch: int) -> Callable[[], object]:
    model, liger = _random_model(s, size), s.device.startswith("cuda")
    model.set_attn_implementation("sdpa")
    return trl_trainer_step(model, s.tokenizer, caption_triplets("train", s.triplets), batch, liger=liger)


def _random_model(s: Setting, size: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return empty_model(s.shapes[size], s.dtype, s.device).eval()


def _step_flops(shape: LlamaConfig, tokens: int, responses: int) -> float:
    """Operations that the step needs: 4P + 6L of a policy's token, 2P of the reference's, 6H of a response's token.

    Attention's own products and what is recomputed do not count.
    """
    model = empty_model(shape, torch.bfloat16, "meta")
    blocks = sum(linear.weight.numel() for linear in block_linears(model).values())
    head = model.get_output_embeddings().weight.numel()
    with torch.device("meta"):
        add_lora(model, RANK, ALPHA)
    adapter = sum(parameter.numel() for parameter in lora_parameters(model).values())
    return 6 * (tokens * (blocks + adapter) + responses * head)


def _peak_flops(s: Setting) -> tuple[float, str]:
    """Dense bfloat16 FLOP/s of the card's data sheet; elsewhere what a bare product reaches here."""
    processor = race.machine(s.device)["processor"]
    for known, (flops, _) in GPUS.items():
        if known.split()[0] in processor:
            return flops, known
    side = 8192 if s.device.startswith("cuda") else 512
    x = torch.randn(side, side, dtype=s.dtype, device=s.device)
    (row,) = _measure(s, {"product": lambda: lambda: x @ x}, {"FLOP/s": 2 * side**3})
    return row["FLOP/s"], "a bare product"


def race_encoders(s: Setting) -> list[dict]:
    """Sentences embedded a second, beside sentence-transformers with the same model and prompt."""
    given = argparse.Namespace(model=s.model, device=s.device, dtype=_name(s.dtype), sentences="", count=s.sentences)
    sentences = embedding._sentences(given)
    makers = {f"sempa, batch {size}": partial(embedding._sempa, given, sentences, size) for size in (32, 128, 512)}
    for size in (32, 128):
        makers[f"sentence-transformers, batch {size}"] = partial(embedding._peer, given, sentences, size)
    return _measure(s, makers, {"sentences/s": len(sentences)})


def whole_run(s: Setting) -> list[dict]:
    """`sempa train` on the built-in captions with the default recipe: its seconds and its scores."""
    config = Config(model=s.model, dtype=_name(s.dtype), device=s.device, output=str(s.folder / "run"), **s.run)
    report = start_run(config, "gpu.py")
    scores = {f"{row['task']}, {side}": row[side] for row in report["sts"] for side in ("base", "aligned")}
    seconds = {f"{name}, s": value for name, value in report["seconds"].items()}
    return [{"steps": report["training"]["steps"], **seconds, "peak GiB": report["peak_memory_gib"], **scores}]


def install_peers(s: Setting) -> list[dict]:
    """The kernels to compare with, from the package index where the machine reaches one."""
    rows = []
    for package in PEERS:
        skipped = "it needs CUDA"
        if s.device.startswith("cuda"):
            # Beside the torch that is there.
            command = ["pip", "install", "--quiet", "--no-deps", "--retries", "0", "--timeout", "10", package]
            done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
            skipped = "".join(done.stderr.strip().splitlines()[-1:]) if done.returncode else ""
        rows.append({"package": package, "skipped": skipped})
    importlib.invalidate_caches()
    return rows


def _measure(s: Setting, makers: dict[str, Callable], work: dict[str, float] | None = None) -> list[dict]:
    """Median milliseconds, peak memory above what the maker leaves, and the work done in a second.

    A maker returns what is timed. What fails is skipped with its reason. One after another: two models of 8 B would not
    lie side by side.
    """
    rows = []
    for name, make in makers.items():
        try:
            run = make()
            peak = race.PeakMemory(s.device)
            seconds = statistics.median([gatherer._seconds(run) for _ in range(1 + s.rounds)][1:])
            row = {"ms": 1000 * seconds, "peak GiB": peak.risen() / 2**30}
            row |= {what: amount / seconds for what, amount in (work or {}).items()}
        except Exception as error:
            row = {"skipped": _reason(error)}
        run = None
        _free()
        rows.append({"contestant": name, **row})
    return rows


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)[:200]}"


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _batch(s: Setting, config: Config, count: int) -> Batch:
    triplets = caption_triplets("train", count)
    preferences = [encode_triplet(s.tokenizer, triplet, words=True) for triplet in triplets]
    return Batches(replace(config, batch_size=count), preferences)[0]


def _kernel_inputs(s: Setting, dtype: torch.dtype, n: int, d: int, v: int) -> tuple[Tensor, Tensor, Tensor]:
    return gatherer._inputs(argparse.Namespace(device=s.device, trained=False), _name(dtype), n, d, v)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Results

SECTIONS: dict[str, Callable[[Setting], list[dict]]] = {
    "packages": install_peers,
    "packed = separate": check_packing,
    "kernel against float64": check_kernel,
    "gradients against float64": check_gradients,
    "log-probabilities": race_kernels,
    "step, 1 B": partial(race_steps, size="1 B"),
    "step, 8 B": partial(race_steps, size="8 B"),
    "embedding": race_encoders,
    "a whole run": whole_run,
}


def run_sections(s: Setting, out: Path, command: str) -> dict:
    """Run every section and write `out`.json, .md and .svg after each; returns the result."""
    began, measured = time.perf_counter(), []
    result = {"command": command, "machine": race.machine(s.device), "dtype": _name(s.dtype), "sections": []}
    for name, section in SECTIONS.items():
        entry, started = {"name": name}, time.perf_counter()
        try:
            if started - began > BUDGET:
                raise TimeoutError(f"not begun: {BUDGET} s are over")
            entry["rows"] = section(s)
            _compare(entry["rows"])
        except Exception as error:
            entry["failed"] = _reason(error)
        _free()
        entry["seconds"] = time.perf_counter() - started
        result["sections"].append(entry)
        print(_section_table(entry), flush=True)
        write_json(out.with_suffix(".json"), result)
        write_atomic(out.with_suffix(".md"), as_markdown(result))
        measured += [{"section": name, **row} for row in entry.get("rows", []) if "ms" in row]
    if measured and available():
        write_atomic(out.with_suffix(".svg"), bars(measured))
    return result


def _compare(rows: list[dict]) -> None:
    """Put each time beside the first of its size: bare products, or sempa."""
    first = {}
    for row in rows:
        if "ms" in row:
            size = tuple(row.get(side) for side in ("N", "D", "V"))
            row["x first"] = row["ms"] / first.setdefault(size, row["ms"])


def as_markdown(result: dict) -> str:
    """The command, the machine, and a table for each section."""
    machine = result["machine"]
    head = f"`{result['command']}`, {machine['processor']}, {result['dtype']}, {machine['date']}"
    return "\n\n".join([head, *map(_section_table, result["sections"])]) + "\n"


def _section_table(entry: dict) -> str:
    title = f"## {entry['name']} ({entry['seconds']:.1f} s)"
    if "failed" in entry:
        return f"{title}\n\nfailed: {entry['failed']}"
    columns = list(dict.fromkeys(key for row in entry["rows"] for key in row))
    table = race.table(columns, [[row.get(column, "") for column in columns] for row in entry["rows"]])
    return f"{title}\n\n```\n{table}\n```"


def main() -> None:
    """Run all sections; exit code 1 when one failed or a check does not pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU too")
    parser.add_argument("--out", type=Path, help="where .json, .md and .svg go (default: experiments/results/gpu)")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        parser.exit(2, f"{parser.prog}: no GPU is there; --tiny rehearses on a CPU\n")
    out = given.out or race.RESULTS / ("gpu-tiny" if given.tiny else "gpu")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        setting = tiny_setting("cpu", Path(folder)) if given.tiny else full_setting("cuda", Path(folder))
        result = run_sections(setting, out, f"gpu.py{' --tiny' * given.tiny}")
    failed = []
    for entry in result["sections"]:
        failed += [entry["name"]] if "failed" in entry else []
        failed += [row["what"] for row in entry.get("rows", []) if row.get("passes") is False]
    print(json.dumps({"failed": failed, "seconds": sum(entry["seconds"] for entry in result["sections"])}))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
