"""One answer token by token, for whoever shows it while it grows."""

from collections.abc import Container, Iterator, Sequence

import torch
from tokenizers.decoders import DecodeStream

from sempa.model.base import BaseModel
from sempa.model.logprobs import head_logits
from sempa.model.sampling import check_sampling, choose


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
    out of its range; prompt and answer must fit into the model's context (`sempa.model.sampling.encode_prompts`).
    """
    check_sampling(max_new_tokens, temperature, top_p)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(max_new_tokens, generator=generator, dtype=torch.float64)
    return _grow(base, prompt_ids, draws, temperature, top_p, stop_ids)


@torch.no_grad()
def _grow(
    base: BaseModel,
    prompt_ids: Sequence[int],
    draws: torch.Tensor,
    temperature: float,
    top_p: float,
    stop_ids: Container[int],
) -> Iterator[tuple[int, str]]:
    model = base.model.eval()
    unread, cache = list(prompt_ids), None
    decoder = DecodeStream(skip_special_tokens=True)
    for draw in draws:
        tokens = torch.tensor([unread], device=model.device)
        output = model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logprobs = head_logits(model, output.last_hidden_state[:, -1]).log_softmax(1)
        token = int(choose(logprobs, draw[None], temperature, top_p))
        yield token, decoder.step(base.tokenizer.backend_tokenizer, token) or ""
        if token in stop_ids:
            return
        unread = [token]
