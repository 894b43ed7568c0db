"""QDPO: round SmolLM2-135M to int4, align it with its full-precision self, and measure both beside int8.

    python experiments/qdpo/qdpo.py [--new-tokens 32] [--epochs 2] [--sts-pairs 60]

The pairs come from the built-in questions, the figures from prompts and texts that gave none. JSON is written after
every row: what an interrupt leaves is whole as far as it goes.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sempa.config import Config
from sempa.embedder import embed
from sempa.evaluation import builtin_task, measure_texts
from sempa.experiment import origin
from sempa.files import write_json
from sempa.lora import add_lora
from sempa.models import BaseModel, load_base
from sempa.neutral import QUESTIONS
from sempa.prompts import encode_texts, render_prompt
from sempa.quantised import align_quantised, diverging_pairs, flip_rate, quantise_model
from sempa.sampling import Sample, sample
from sempa.sts import evaluate_sts
from sempa.texts import encode_conversations
from sempa.unseen_text import CONVERSATIONS, GENERATION_PROMPTS

RESULTS = Path(__file__).resolve().parent.parent / "results" / "qdpo.json"
HELD_OUT = (*GENERATION_PROMPTS, *(question for question, _ in CONVERSATIONS))
SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--new-tokens", type=int, default=32, help="longest greedy answer (default %(default)s)")
    parser.add_argument("--epochs", type=float, default=2.0, help="over the pairs (default %(default)s)")
    parser.add_argument("--sts-pairs", type=int, default=60, help="of the built-in set (default %(default)s)")
    given = parser.parse_args()
    config = Config(dtype="float32", objective="dpo", anchor=0.0, learning_rate=2e-4, batch_size=4, epochs=given.epochs)
    full = load_base(config.model, config.dtype)
    asked, held_out = (prompts_of(full, texts) for texts in (QUESTIONS, HELD_OUT))
    answers = greedy(full, held_out, given.new_tokens)
    result = {
        "settings": {
            **{"model": config.model, "dtype": config.dtype, "threads": torch.get_num_threads()},
            **{name: getattr(config, name) for name in ("beta", "learning_rate", "batch_size", "epochs", "lora_rank")},
            **{"prompts": len(asked), "held_out_prompts": len(held_out), **vars(given)},
        },
        "models": {},
    }

    def keep(name: str, base: BaseModel) -> None:
        result["models"][name] = row = measure(base, held_out, answers, given.new_tokens, given.sts_pairs)
        result["cpu_seconds"] = time.process_time()
        write_json(RESULTS, {**origin(), **result})
        print(name, json.dumps(row), flush=True)

    keep("full precision", full)
    int4 = load_base(config.model, config.dtype)
    quantise_model(int4.model, 4)
    keep("int4", int4)
    pairs = diverging_pairs(asked, greedy(full, asked, given.new_tokens), greedy(int4, asked, given.new_tokens))
    add_lora(int4.model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed)
    steps = align_quantised(config, int4, full.model, pairs)
    result["pairs"] = len(pairs)
    result["steps"] = [{name: step[name] for name in SHOWN} for step in steps]
    keep("int4 + QDPO", int4)
    int8 = load_base(config.model, config.dtype)
    quantise_model(int8.model, 8)
    keep("int8", int8)


def prompts_of(base: BaseModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of what a user says, through the chat template."""
    return encode_texts(base.tokenizer, [render_prompt(base.tokenizer, text) for text in texts])


def greedy(base: BaseModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Sample]:
    """The greedy answer to each prompt."""
    return [few[0] for few in sample(base, prompts, 1, new_tokens, temperature=0)]


def measure(
    base: BaseModel, prompts: list[list[int]], answers: list[Sample], new_tokens: int, sts_pairs: int
) -> dict[str, float]:
    """Flips against the full-precision model's `answers`, perplexity of unseen conversations, Spearman's ρ × 100."""
    own = greedy(base, prompts, new_tokens)
    same = sum(one.tokens == other.tokens for one, other in zip(own, answers, strict=True))
    (text,) = measure_texts(base, {"conversations": encode_conversations(base.tokenizer, CONVERSATIONS)})
    (sts,) = evaluate_sts(lambda texts: embed(base, texts), [builtin_task(sts_pairs, 0)])
    return {
        "flip_rate": flip_rate(base.model, prompts, answers),
        "same_answers": same / len(answers),
        "perplexity": text["aligned_perplexity"],
        "sts": sts.score,
    }


if __name__ == "__main__":
    main()
