"""QDPO: round SmolLM2-135M to int8 and int4, and align the int4 model with its full-precision self.

    python experiments/qdpo/qdpo.py [--new-tokens 48] [--epochs 3]

The pairs come from the built-in questions; the measures are of prompts and texts that gave none. Writes JSON.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sempa.config import Config
from sempa.embedder import embed
from sempa.evaluation import builtin_task, measure_generation
from sempa.files import write_json
from sempa.lora import add_lora
from sempa.models import BaseModel, load_base
from sempa.neutral import QUESTIONS
from sempa.prompts import encode_texts, render_prompt
from sempa.quantised import align_quantised, diverging_pairs, flip_rate, quantise_model
from sempa.sampling import Sample, sample
from sempa.sts import evaluate_sts
from sempa.unseen_text import CONVERSATIONS, GENERATION_PROMPTS

RESULTS = Path(__file__).resolve().parent.parent / "results" / "qdpo.json"
MODEL, DTYPE = "smollm2-135m", "float32"
HELD_OUT = (*GENERATION_PROMPTS, *(question for question, _ in CONVERSATIONS))
PAIRS_MEASURED = 200
SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--new-tokens", type=int, default=48, help="longest greedy answer (default %(default)s)")
    parser.add_argument("--epochs", type=float, default=3.0, help="over the pairs (default %(default)s)")
    given = parser.parse_args()
    config = Config(
        model=MODEL, dtype=DTYPE, objective="dpo", anchor=0.0, learning_rate=1e-4, batch_size=8, epochs=given.epochs
    )
    began = time.perf_counter()
    full = load_base(MODEL, DTYPE)
    asked, held_out = (prompts_of(full, texts) for texts in (QUESTIONS, HELD_OUT))
    answers, held_answers = (greedy(full, prompts, given.new_tokens) for prompts in (asked, held_out))
    rows = {"full precision": measure(full, held_out, held_answers, given.new_tokens)}
    for bits in (8, 4):
        base = load_base(MODEL, DTYPE)
        quantise_model(base.model, bits)
        rows[f"int{bits}"] = measure(base, held_out, held_answers, given.new_tokens)
    # The last one, of 4 bits, is trained.
    flips = {"before": flip_rate(base.model, asked, answers)}
    pairs = diverging_pairs(asked, answers, greedy(base, asked, given.new_tokens))
    add_lora(base.model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed)
    trained = time.perf_counter()
    steps = align_quantised(config, base, full.model, pairs)
    trained = time.perf_counter() - trained
    flips["after"] = flip_rate(base.model, asked, answers)
    rows["int4 + QDPO"] = measure(base, held_out, held_answers, given.new_tokens)
    result = {
        "settings": {
            **{"model": MODEL, "dtype": DTYPE, "threads": torch.get_num_threads(), "new_tokens": given.new_tokens},
            **{name: getattr(config, name) for name in ("beta", "learning_rate", "batch_size", "epochs", "lora_rank")},
            **{"prompts": len(asked), "held_out_prompts": len(held_out), "sts_pairs": PAIRS_MEASURED},
        },
        "seconds": {"training": trained, "all": time.perf_counter() - began},
        "pairs": len(pairs),
        "flip_rate_of_the_training_prompts": flips,
        "models": rows,
        "steps": [{name: step[name] for name in SHOWN} for step in steps],
    }
    write_json(RESULTS, result)
    print(json.dumps(result, indent=1))


def prompts_of(base: BaseModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of what a user says, through the chat template."""
    return encode_texts(base.tokenizer, [render_prompt(base.tokenizer, text) for text in texts])


def greedy(base: BaseModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Sample]:
    """The greedy answer to each prompt."""
    return [few[0] for few in sample(base, prompts, 1, new_tokens, temperature=0)]


def measure(base: BaseModel, prompts: list[list[int]], answers: list[Sample], new_tokens: int) -> dict:
    """Flips against the full-precision model's `answers`, perplexity of unseen texts, and Spearman's ρ × 100."""
    own = greedy(base, prompts, new_tokens)
    same = sum(one.tokens == other.tokens for one, other in zip(own, answers, strict=True))
    retention, _ = measure_generation(base, [], 0)
    (sts,) = evaluate_sts(lambda texts: embed(base, texts), [builtin_task(PAIRS_MEASURED, 0)])
    row = {
        "flip_rate": flip_rate(base.model, prompts, answers),
        "same_answers": same / len(answers),
        "perplexity": {text["text"]: text["aligned_perplexity"] for text in retention},
        "sts": sts.score,
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
