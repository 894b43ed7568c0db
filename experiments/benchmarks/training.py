"""Training triplets/s and memory: sempa against TRL's DPOTrainer with PEFT, and a step against its forward pass."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import race
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sempa.batching.batches import Batch, make_batch, steps_per_epoch
from sempa.batching.prompts import PARAPHRASE, SYSTEM, encode_triplet
from sempa.config import Config
from sempa.data.triplets import Triplet, caption_triplets, read_triplets
from sempa.model.base import BaseModel, load_base, resolve_model
from sempa.model.layers import checkpoint_blocks
from sempa.model.logprobs import sequence_logprobs
from sempa.model.lora import add_lora, lora_parameters
from sempa.model.threads import parallel_map
from sempa.training.step import train_step

# What every benchmark that trains takes.
OPTIONS = {
    "model": {"default": "smollm2-135m", "help": "model name, folder, .gguf file or hub id"},
    "triplets": {"default": "captions", "help": "triplets file, or captions for the built-in ones"},
}
RANK, ALPHA = 8, 32
# Tokens of a packed row, the default first: longer rows can be faster, shorter ones take less memory.
_ROWS = (1024, 512)
_TRL_BATCHES = (1, 2, 4, 8)


def main() -> None:
    given = race.arguments(
        __doc__,
        **OPTIONS,
        count={"type": int, "default": 32, "help": "triplets of one timed pass (default %(default)s)"},
        random={"metavar": "WIDTH,DEPTH", "help": "random weights of this size, in the model's kind (2048,22: 1.0 B)"},
        memory={"help": "measure the peak memory of this contestant only"},
        only={"nargs": "+", "metavar": "NAME", "help": "only these contestants, `sempa step` among them"},
    )
    with tempfile.TemporaryDirectory() as folder:
        if given.random:
            random_model(given.model, Path(folder), *map(int, given.random.split(",")))
            given.model = folder
        _race(given)


def _race(given: argparse.Namespace) -> None:
    triplets = read_or_make(given)
    steps = step_makers(given, triplets)
    if given.memory:
        print(json.dumps({"bytes": _memory(given, steps[given.memory]())}))
        return
    runs = {name: _made(name, make) for name, make in steps.items() if name in (given.only or steps)}
    seconds = race.alternate({name: run for name, run in runs.items() if run is not None}, given.rounds)
    step = seconds["sempa step"]
    options = [
        *("--model", given.model, "--dtype", race.dtype(given), "--device", given.device),
        *("--triplets", given.triplets, "--count", given.count),
    ]
    rows = [
        {
            "contestant": name,
            "triplets/s": len(triplets) / value,
            "x sempa step": value / step,
            "peak GiB": race.in_fresh_process(__file__, *options, "--memory", name)["bytes"] / 2**30,
        }
        for name, value in seconds.items()
    ]
    print(race.table(list(rows[0]), [list(row.values()) for row in rows]))
    if not given.only:
        best = min(value for name, value in seconds.items() if name.startswith("TRL"))
        print(f"step / forward = {step / seconds['sempa forward']:.2f}   TRL / sempa = {best / step:.1f}")
    print(race.keep("training", given, rows))


def _made(name: str, make: Callable[[], Callable[[], None]]) -> Callable[[], None] | None:
    """A contestant's run; None, with the reason on stderr, where TRL cannot be set up or cannot make a step."""
    if not name.startswith("TRL"):
        return make()
    try:
        run = make()
        run()
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return run


def random_model(source: str, folder: Path, width: int, depth: int) -> None:
    """Save a model of the source's kind and tokenizer with other sizes and random weights."""
    config = AutoConfig.from_pretrained(resolve_model(source))
    heads = width // config.head_dim
    config.update({"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads})
    config.update({"num_key_value_heads": 1, "intermediate_size": 8 * width // 3, "layer_types": None})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model(source)).save_pretrained(folder)


def read_or_make(given: argparse.Namespace) -> list[Triplet]:
    """The first `given.count` triplets of the file `given.triplets`, or of the built-in captions."""
    if given.triplets == "captions":
        return caption_triplets("train", given.count)
    return read_triplets(Path(given.triplets))[0][: given.count]


def step_makers(given: argparse.Namespace, triplets: Sequence[Triplet]) -> dict[str, Callable]:
    """What makes each contestant: a function without arguments that loads the model and returns its run."""
    makers = {"sempa forward": lambda: sempa_contestants(given, triplets)["forward"]}
    for rows in _ROWS:
        name = "sempa step" + f", rows of {rows} tokens" * (rows != _ROWS[0])
        makers[name] = lambda n=rows: sempa_contestants(given, triplets, n)["step"]
    makers["sempa step, recomputed"] = lambda: sempa_contestants(given, triplets, recomputed=True)["step"]
    for size, recomputed in ((8, False),) if given.short else product(_TRL_BATCHES, (False, True)):
        name = f"TRL, batch {size}" + ", recomputed" * recomputed
        makers[name] = lambda n=size, r=recomputed: trl_step(given, triplets, n, recomputed=r)
    if not given.short:
        makers["TRL, batch 8, padding-free"] = lambda: trl_step(given, triplets, 8, padding_free=True)
    return makers


def prepare(
    given: argparse.Namespace, triplets: Sequence[Triplet], row_tokens: int = _ROWS[0], recomputed: bool = False
) -> tuple[BaseModel, Config, list[Batch]]:
    """The model with an adapter, its blocks kept or recomputed for the backward pass, and the triplets packed."""
    dpo_alone = {"preference": 1.0, "preference_fraction": 1.0, "contrast": 0.0, "retention": 0.0, "batch_size": 32}
    numbers = {"learning_rate": 1e-4, "lora_rank": RANK, "lora_alpha": ALPHA}
    config = Config(model=given.model, row_tokens=row_tokens, **dpo_alone, **numbers)
    base = load_base(given.model, race.dtype(given), given.device)
    add_lora(base.model, RANK, ALPHA)
    if recomputed:
        checkpoint_blocks(base.model)
    preferences = [encode_triplet(base.tokenizer, triplet) for triplet in triplets]
    steps = range(steps_per_epoch(config, preferences))
    return base, config, [make_batch(config, preferences, step) for step in steps]


def sempa_contestants(
    given: argparse.Namespace, triplets: Sequence[Triplet], row_tokens: int = _ROWS[0], recomputed: bool = False
) -> dict[str, Callable[[], None]]:
    """A forward pass over all triplets, and training steps over them: policy, reference, gradient, update."""
    base, config, batches = prepare(given, triplets, row_tokens, recomputed)
    rows = [row for batch in batches for row in batch.preference_rows]
    optimizer = torch.optim.AdamW(lora_parameters(base.model).values())

    def step() -> None:
        for batch in batches:
            train_step(config, base.model, optimizer, batch, [], 0, 1000)

    @torch.no_grad()
    def forward() -> None:
        list(parallel_map(base.model, partial(sequence_logprobs, base.model), rows))

    return {"forward": forward, "step": step}


def trl_step(
    given: argparse.Namespace,
    triplets: Sequence[Triplet],
    batch: int,
    padding_free: bool = False,
    recomputed: bool = False,
) -> Callable[[], None]:
    """TRL's own training step on the same triplets, prompt, LoRA and dtype; its reference is a pass without adapter."""
    source = resolve_model(given.model)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, race.dtype(given))).to(given.device)
    return trl_trainer_step(model, AutoTokenizer.from_pretrained(source), triplets, batch, padding_free, recomputed)


def trl_trainer_step(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    triplets: Sequence[Triplet],
    batch: int,
    padding_free: bool = False,
    recomputed: bool = False,
    liger: bool = False,
) -> Callable[[], None]:
    """The same of a loaded model, with Liger's kernels where asked for; raises whatever TRL raises.

    TRL's default recomputes activations, which is slower.
    """
    import datasets
    import peft
    import trl

    rows = [
        {
            "prompt": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": PARAPHRASE.format(sentence=t.sentence)},
            ],
            "chosen": [{"role": "assistant", "content": t.chosen}],
            "rejected": [{"role": "assistant", "content": t.rejected}],
        }
        for t in triplets
    ]
    trainer = trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch,
            padding_free=padding_free,
            use_liger_kernel=liger,
            gradient_checkpointing=recomputed,
            bf16=model.dtype == torch.bfloat16,
            use_cpu=model.device.type == "cpu",
            beta=0.1,
            report_to=[],
            disable_tqdm=True,
            max_length=None,
        ),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    if padding_free and not getattr(trainer, "padding_free", False):
        raise RuntimeError("this release pads all the same")
    # What `train()` would do before its first step.
    trainer.current_gradient_accumulation_steps = 1
    if liger:
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(trainer.model, trainer.args.liger_kernel_config)
    trainer.accelerator.prepare_model(trainer.model)
    batches = list(trainer.get_train_dataloader())
    optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        trainer.model.train()
        for inputs in batches:
            trainer.training_step(trainer.model, dict(inputs))
        torch.nn.utils.clip_grad_norm_([p for p in trainer.model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _memory(given: argparse.Namespace, run: Callable[[], None]) -> int:
    peak = race.PeakMemory(given.device)
    for _ in range(2):
        run()
    return peak.risen()


if __name__ == "__main__":
    main()
