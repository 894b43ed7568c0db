"""Answers sampled from the model, batched or token by token; under `adapter_disabled` from the base."""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sempa.batching.prompts import encode_texts, end_of_turn, render_prompt
from sempa.errors import SempaError
from sempa.io.progress import bar
from sempa.model.base import BaseModel
from sempa.model.forward import context_length
from sempa.model.logprobs import head_logits


@dataclass(frozen=True)
class Sample:
    """An answer to a prompt.

    `tokens`: its ids, with the end-of-turn token where it was reached (`ended`); `logprobs` `[tokens]` float32: each
    token's log-probability in nats, before temperature and nucleus; `text`: the answer without special tokens.
    """

    tokens: list[int]
    logprobs: Tensor
    text: str
    ended: bool


def sample(
    base: BaseModel,
    prompts: Sequence[str | Sequence[int]],
    n: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    *,
    batch_size: int = 64,
    progress: str = "",
) -> list[list[Sample]]:
    """Sample `n` answers to each prompt, by the model with whatever adapter it holds: `result[prompt][k]`.

    A prompt is what a user says, put through the chat template, or token ids as they are. An end-of-turn token ends an
    answer before `max_new_tokens`. Temperature 0 decodes greedily; `top_p` draws from the smallest set of tokens whose
    probability reaches it (nucleus, arXiv 1904.09751). `batch_size` answers grow at one time; each has draws of its own
    by `seed`, so their number changes them by rounding alone. `progress` names a bar to show.

    Raises `SempaError` as `check_sampling` and `encode_prompts` do.
    """
    check_sampling(max_new_tokens, temperature, top_p)
    sequences, ends = encode_prompts(base, prompts, max_new_tokens), end_tokens(base)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(sequences), n, max_new_tokens, generator=generator, dtype=torch.float64)
    # Equal lengths side by side; the longest first, so that a batch too large for memory fails at once.
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    answers = [(prompt, k) for prompt in order for k in range(n)]
    results: list[list[Sample]] = [[] for _ in sequences]
    with bar(len(answers), progress, "answer") as shown:
        for start in range(0, len(answers), batch_size):
            batch = answers[start : start + batch_size]
            chances = torch.stack([draws[answer] for answer in batch])
            tokens: list[list[int]] = [[] for _ in batch]
            logprobs: list[list[float]] = [[] for _ in batch]
            for step in _grow(base, [sequences[prompt] for prompt, _ in batch], chances, temperature, top_p, ends):
                for row, token, logprob in zip(*step, strict=True):
                    tokens[row].append(token)
                    logprobs[row].append(logprob)
            for (prompt, _), ids, values in zip(batch, tokens, logprobs, strict=True):
                ended = ids[-1] in ends
                text = base.tokenizer.decode(ids[: len(ids) - ended], skip_special_tokens=True).strip()
                results[prompt].append(Sample(ids, torch.tensor(values), text, ended))
            shown.update(len(batch))
    return results


def stream_answer(
    base: BaseModel,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop_ids: Container[int],
) -> Iterator[tuple[int, str]]:
    """Each token of `sample`'s one answer to `prompt_ids` as soon as it is drawn, and the text that it completes.

    The text has no special tokens, and is empty while a character lacks bytes. A token of `stop_ids` is the last.
    Every step takes one forward pass, so that other work can run between two of them. Raises `SempaError` for a number
    out of its range; prompt and answer must fit into the model's context (`encode_prompts`).
    """
    check_sampling(max_new_tokens, temperature, top_p)
    draws = torch.rand(1, max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    steps = _grow(base, [prompt_ids], draws, temperature, top_p, stop_ids)
    decoder, inner = DecodeStream(skip_special_tokens=True), base.tokenizer.backend_tokenizer

    def text(token: int) -> str:
        nonlocal decoder
        try:
            return decoder.step(inner, token) or ""
        except Exception:  # the tokens before end within a character: tokenizers has no class for it
            decoder = DecodeStream(skip_special_tokens=True)
            return "\N{REPLACEMENT CHARACTER}" + (decoder.step(inner, token) or "")

    # An end-of-turn token need not be a special one, so the decoder would show it.
    return ((token, "" if token in stop_ids else text(token)) for _, (token,), _ in steps)


def encode_prompts(base: BaseModel, prompts: Sequence[str | Sequence[int]], max_new_tokens: int) -> list[Sequence[int]]:
    """Token ids of each prompt: text put through the chat template, or ids as they are.

    Raises `SempaError` for an empty prompt, and one that leaves no room for `max_new_tokens` in the model's context.
    """
    longest = context_length(base.model)
    sequences = [
        encode_texts(base.tokenizer, [render_prompt(base.tokenizer, prompt)])[0] if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    for place, ids in enumerate(sequences):
        if not 0 < len(ids) <= longest - max_new_tokens:
            found = f"prompt {place}: found {len(ids):,} tokens, expected at least 1"
            raise SempaError(f"{found}, and with {max_new_tokens:,} new ones at most {longest:,}, the model's context")
    return sequences


def end_tokens(base: BaseModel) -> list[int]:
    """The token ids that end a turn: all that generation config, model config, tokenizer or template call an end."""
    places = (base.model.generation_config, base.model.config.get_text_config(), base.tokenizer)
    named = [end_of_turn(base.tokenizer), *(getattr(place, "eos_token_id", None) for place in places)]
    return sorted({token for end in named if end is not None for token in ([end] if isinstance(end, int) else end)})


@torch.no_grad()
def _grow(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    draws: Tensor,
    temperature: float,
    top_p: float,
    ends: Container[int],
) -> Iterator[tuple[list[int], list[int], list[float]]]:
    """Grow one answer to each prompt. After each step: the rows that grew, their tokens and log-probabilities.

    Row i of `draws` `[prompts, max_new_tokens]` in [0, 1) belongs to prompt i; a token of `ends` ends an answer.
    """
    model, device = base.model.eval(), base.model.device
    sequences = [torch.tensor(ids, dtype=torch.int64, device=device) for ids in prompts]
    # Padded on the left, so that all end together; 0 where nothing is seen.
    unread = pad_sequence(sequences, batch_first=True, padding_side="left")
    seen = pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True, padding_side="left")
    positions, cache = (seen.cumsum(1) - 1).clamp_(min=0), None
    rows = list(range(len(prompts)))
    for step in range(draws.shape[1]):
        output = model.base_model(
            input_ids=unread, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        next_logprobs = head_logits(model, output.last_hidden_state[:, -1]).log_softmax(1)
        chosen = choose(next_logprobs, draws[rows, step], temperature, top_p)
        tokens = chosen.tolist()
        yield rows, tokens, next_logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        # Rows that have ended leave the batch and the cache.
        going = [place for place, token in enumerate(tokens) if token not in ends]
        if not going:
            return
        if len(going) < len(rows):
            rows = [rows[place] for place in going]
            chosen, seen, positions = chosen[going], seen[going], positions[going]
            cache.batch_select_indices(torch.tensor(going, device=device))
        unread, positions = chosen[:, None], positions[:, -1:] + 1
        seen = torch.cat([seen, seen.new_ones(len(rows), 1)], 1)


def choose(logprobs: Tensor, draws: Tensor, temperature: float, top_p: float) -> Tensor:
    """Token ids `[rows]` by inverting the distribution function of `logprobs` `[rows, V]` at `draws` `[rows]`.

    Temperature 0 takes the likeliest token; `draws` are float64 in [0, 1), on the CPU.
    """
    if temperature == 0:
        return logprobs.argmax(1)
    # Metal has no float64.
    wide = (logprobs.cpu() if logprobs.device.type == "mps" else logprobs).double()
    # Subtract the largest first: then no temperature, however low, makes the likeliest token's score infinite.
    probabilities = ((wide - wide.amax(1, keepdim=True)) / temperature).softmax(1)
    if top_p < 1:
        falling, order = probabilities.sort(dim=1, descending=True, stable=True)
        # A token stays while those likelier than it fall short of top_p; so the likeliest always stays.
        falling[falling.cumsum(1) - falling >= top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(1, order, falling)
    reached = probabilities.cumsum(1)
    # The first token at which the running sum exceeds the draw: one of probability zero never does.
    chosen = torch.searchsorted(reached, draws.to(wide.device)[:, None] * reached[:, -1:], right=True)
    return chosen[:, 0].clamp_(max=logprobs.shape[1] - 1).to(logprobs.device)


def check_sampling(max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Raise `SempaError` for a number out of its range."""
    if max_new_tokens < 1:
        raise SempaError(f"max_new_tokens: found {max_new_tokens}, expected at least 1")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise SempaError(f"temperature: found {temperature}, expected 0 or more")
    if not 0 < top_p <= 1:
        raise SempaError(f"top_p: found {top_p}, expected more than 0 and at most 1")
