"""QDPO: round SmolLM2-135M to int4 and to int8, align each with its full-precision self, and measure before and after.

    python experiments/qdpo/qdpo.py [--sts STS] [--pairs 60] [--new-tokens 32] [--epochs 2]

The pairs of answers come from the built-in questions, the figures from prompts and texts that gave none. JSON is
written after every model, so an interrupt loses nothing that was measured.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from quantised import align_quantised, diverging_pairs, flip_rate, quantise_model

from sempa.batching.prompts import encode_texts, render_prompt
from sempa.cli import Parser
from sempa.config import DEFAULT_MODEL
from sempa.data.sts import StsTask, read_sts, sample_task
from sempa.embedding.embed import embed
from sempa.evaluation.drift import measure_drift
from sempa.evaluation.eval_texts import BUILTIN_PROMPTS, read_prompts, report_texts
from sempa.evaluation.measure import builtin_task
from sempa.evaluation.sts import evaluate_sts
from sempa.io.files import write_json
from sempa.io.origin import origin
from sempa.io.streams import exit_code
from sempa.model.base import BaseModel, load_base
from sempa.model.lora import add_lora
from sempa.model.sampling import Sample, sample
from sempa.training.base_samples import QUESTIONS

HERE = Path(__file__).resolve().parent
RANK, ALPHA = 8, 32.0
CONVERSATIONS = report_texts()["conversations"]
HELD_OUT = (*read_prompts(BUILTIN_PROMPTS), *(text.question for text in CONVERSATIONS))
SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen")


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--new-tokens", type=int, default=32, help="longest greedy answer (default %(default)s)")
    parser.add_argument("--epochs", type=float, default=2.0, help="over the pairs (default %(default)s)")
    parser.add_argument("--sts", default="", help="folder of STS sets (default: the built-in pairs)")
    parser.add_argument("--pairs", type=int, default=60, help="of each set (default %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE / "qdpo.json", help="where the figures go")
    given = parser.parse_args()
    training = {"beta": 0.1, "learning_rate": 2e-4, "batch_size": 4, "epochs": given.epochs}
    tasks = [builtin_task(given.pairs)]
    if given.sts:
        tasks = [sample_task(task, given.pairs) for task in read_sts(given.sts, ("dev", "trial"))]
    full = load_base(DEFAULT_MODEL, "float32")
    asked, held_out = (prompts_of(full, texts) for texts in (QUESTIONS, HELD_OUT))
    answers = greedy(full, held_out, given.new_tokens)
    result = {
        "settings": {
            **{"model": DEFAULT_MODEL, "dtype": "float32", "threads": torch.get_num_threads()},
            **training,
            "lora_rank": RANK,
            **{"prompts": len(asked), "held_out_prompts": len(held_out)},
            **{"new_tokens": given.new_tokens, "pairs": given.pairs, "sets": [task.name for task in tasks]},
        },
        "models": {},
        "pairs": {},
        "steps": {},
    }

    def keep(name: str, base: BaseModel) -> None:
        result["models"][name] = row = measure(base, held_out, answers, given.new_tokens, tasks)
        result["cpu_seconds"] = time.process_time()
        write_json(given.out, {**origin(base.model), **result})
        print(name, json.dumps(row), flush=True)

    keep("full precision", full)
    wanted = greedy(full, asked, given.new_tokens)
    for bits in (4, 8):
        name, quantised = f"int{bits}", load_base(DEFAULT_MODEL, "float32")
        quantise_model(quantised.model, bits)
        keep(name, quantised)
        pairs = diverging_pairs(asked, wanted, greedy(quantised, asked, given.new_tokens))
        add_lora(quantised.model, RANK, ALPHA)
        steps = align_quantised(quantised.model, full.model, pairs, **training)
        result["pairs"][name] = len(pairs)
        result["steps"][name] = [{key: step[key] for key in SHOWN} for step in steps]
        keep(f"{name} + QDPO", quantised)


def prompts_of(base: BaseModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of what a user says, through the chat template."""
    return encode_texts(base.tokenizer, [render_prompt(base.tokenizer, text) for text in texts])


def greedy(base: BaseModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Sample]:
    """The greedy answer to each prompt."""
    return [few[0] for few in sample(base, prompts, 1, new_tokens, temperature=0)]


def measure(
    base: BaseModel, prompts: list[list[int]], answers: list[Sample], new_tokens: int, tasks: list[StsTask]
) -> dict[str, object]:
    """Flips against the full-precision model's `answers`, perplexity of unseen conversations, Spearman's ρ × 100."""
    own = greedy(base, prompts, new_tokens)
    same = sum(one.tokens == other.tokens for one, other in zip(own, answers, strict=True))
    (text,) = measure_drift(base, {"conversations": CONVERSATIONS})
    scores = {result.task.name: result.score for result in evaluate_sts(lambda texts: embed(base, texts), tasks)}
    return {
        "flip_rate": flip_rate(base.model, prompts, answers),
        "same_answers": same / len(answers),
        "perplexity": text["aligned_perplexity"],
        "sts": scores,
        "average": statistics.mean(scores.values()),
    }


if __name__ == "__main__":
    sys.exit(exit_code("qdpo.py", main))
