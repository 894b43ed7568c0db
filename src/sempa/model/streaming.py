"""One answer token by token, for whoever shows it while it grows."""

from collections.abc import Container, Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from sempa.model.base import BaseModel
from sempa.model.logprobs import head_logits
from sempa.model.sampling import check_sampling, choose


def stream_tokens(
    base: BaseModel,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop_ids: Container[int],
) -> Iterator[int]:
    """The ids of `sample`'s one answer to `prompt_ids`, each as soon as it is drawn; one of `stop_ids` is the last.

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
) -> Iterator[int]:
    model = base.model.eval()
    unread, cache = list(prompt_ids), None
    for draw in draws:
        tokens = torch.tensor([unread], device=model.device)
        output = model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logprobs = head_logits(model, output.last_hidden_state[:, -1]).log_softmax(1)
        token = int(choose(logprobs, draw[None], temperature, top_p))
        yield token
        if token in stop_ids:
            return
        unread = [token]


class IncrementalDecoder:
    """Text of tokens that come one by one; together it is what the tokenizer makes of all of them.

    ```
    decoder = IncrementalDecoder(tokenizer)
    for token in tokens:
        print(decoder.push(token), end="", flush=True)
    print(decoder.flush())
    ```
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        # Tokens already shown, which only decide about a blank between words, and tokens still to be shown.
        self._shown: list[int] = []
        self._new: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes, without special tokens; empty while a character lacks bytes."""
        self._new.append(token)
        text = self._text()
        if not text or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._shown, self._new = self._new, []
        return text

    def flush(self) -> str:
        """What is left when no token follows: the mark of a broken character, or nothing."""
        return self._text()

    def _text(self) -> str:
        before = self._decode(self._shown)
        return self._decode(self._shown + self._new)[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)
