"""How much of the language model is left: perplexity, KL and agreement with the base, and greedy answers."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from sempa.errors import SempaError
from sempa.logprobs import scale_for_head
from sempa.lora import adapter_disabled
from sempa.models import BaseModel, hidden_states
from sempa.prompts import common_prefix, encode_plain, encode_texts, render_conversation, render_prompt

# Logits held at one time, in elements: two models' float32 logits of whole passages would be large.
CHUNK_ELEMENTS = 1 << 23

Scored = tuple[list[int], int]
"""Token ids of a text, and the offset of the first token that is scored."""


@dataclass(frozen=True)
class Retention:
    """What a text's tokens say about base and aligned model: perplexities, KL(base ‖ aligned) in nats per token."""

    text: str
    tokens: int
    base_perplexity: float
    aligned_perplexity: float
    kl: float
    agreement: float

    @property
    def change(self) -> float:
        """The relative change of perplexity: 0.02 is 2 % worse."""
        return self.aligned_perplexity / self.base_perplexity - 1


def read_gsm8k(path: Path, limit: int | None = None) -> list[tuple[str, str]]:
    """Questions and answers of a GSM8K file (JSON lines), without the answers' calculator marks `<<…>>`.

    Raises `SempaError` for an unreadable or empty file and a line without the two fields.
    """
    problems = []
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if limit is not None and len(problems) == limit:
                    break
                if line.strip():
                    problems.append(_problem(line, f"{path}:{number}"))
    except OSError as error:
        raise SempaError(f"gsm8k {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SempaError(f"gsm8k {path}: is not UTF-8 text") from error
    if not problems:
        raise SempaError(f"gsm8k {path}: is empty, expected JSON lines with question and answer")
    return problems


def encode_passages(tokenizer: PreTrainedTokenizerBase, passages: Sequence[str]) -> list[Scored]:
    """Token ids of running text; all tokens but the first are scored."""
    return [(ids, 1) for ids in encode_plain(tokenizer, passages)]


def encode_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[tuple[str, str]]) -> list[Scored]:
    """Token ids of a user's turn and the answer through the chat template; the answer's tokens are scored."""
    encoded = []
    for user, answer in conversations:
        texts = [render_prompt(tokenizer, user), render_conversation(tokenizer, user, answer)]
        prompt, whole = encode_texts(tokenizer, texts)
        encoded.append((whole, common_prefix(prompt, whole)))
    return encoded


@torch.inference_mode()
def measure_retention(
    model: PreTrainedModel, sequences: Sequence[Scored], text: str, progress: tqdm | None = None
) -> Retention:
    """Compare the model with its adapter off and on, exactly over the whole vocabulary, sequence by sequence."""
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64)
    count = 0
    for ids, start in sequences:
        tokens = torch.tensor([ids], device=model.device)
        with adapter_disabled(model):
            before = hidden_states(model, tokens)[0, start - 1 : -1]
        after = hidden_states(model, tokens)[0, start - 1 : -1]
        totals += _compare(model, before, after, tokens[0, start:])
        count += len(ids) - start
        if progress is not None:
            progress.update()
    base, aligned, kl, agreement = (totals / count).tolist()
    return Retention(text, count, math.exp(base), math.exp(aligned), kl, agreement)


def _compare(model: PreTrainedModel, before: Tensor, after: Tensor, targets: Tensor) -> Tensor:
    """Sums over tokens: NLL of base and aligned, KL(base ‖ aligned), and equal first choices; float64 `[4]`."""
    totals = torch.zeros(4, dtype=torch.float64)
    rows = max(1, CHUNK_ELEMENTS // model.get_output_embeddings().weight.shape[0])
    for begin in range(0, len(targets), rows):
        chunk = slice(begin, begin + rows)
        base, aligned = (_log_softmax(model, hidden[chunk]) for hidden in (before, after))
        chosen = targets[chunk, None]
        totals[0] -= base.gather(1, chosen).double().sum().item()
        totals[1] -= aligned.gather(1, chosen).double().sum().item()
        totals[2] += (base.exp() * (base - aligned)).sum(1).double().sum().item()
        totals[3] += (base.argmax(1) == aligned.argmax(1)).sum().item()
    return totals


def _log_softmax(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    logits = model.get_output_embeddings()(scale_for_head(model, hidden)).float()
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits.log_softmax(-1)


def generate(base: BaseModel, prompt: str, max_new_tokens: int) -> str:
    """The model's greedy answer to a user's prompt through the chat template."""
    (ids,) = encode_texts(base.tokenizer, [render_prompt(base.tokenizer, prompt)])
    tokens = torch.tensor([ids], device=base.model.device)
    own = base.model.generation_config
    end = own.eos_token_id if own.eos_token_id is not None else base.tokenizer.eos_token_id
    # A fresh config: sampling values of the model's own would only earn a warning here.
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end, pad_token_id=base.tokenizer.pad_token_id or 0
    )
    output = base.model.eval().generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=greedy)
    return base.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()


def generate_side_by_side(base: BaseModel, prompts: Sequence[str], max_new_tokens: int) -> Iterator[dict[str, str]]:
    """For each prompt the greedy answers with the adapter off and on, under `prompt`, `base` and `aligned`."""
    for prompt in prompts:
        with adapter_disabled(base.model):
            before = generate(base, prompt, max_new_tokens)
        yield {"prompt": prompt, "base": before, "aligned": generate(base, prompt, max_new_tokens)}


def _problem(line: str, place: str) -> tuple[str, str]:
    try:
        fields = json.loads(line)
        question, answer = fields["question"], fields["answer"]
    except (ValueError, KeyError, TypeError) as error:
        raise SempaError(f"{place}: expected a JSON object with question and answer") from error
    if not (isinstance(question, str) and isinstance(answer, str)):
        raise SempaError(f"{place}: question and answer must be text")
    parts = answer.split("<<")
    return question, parts[0] + "".join(part.partition(">>")[2] for part in parts[1:])
