"""From text to token ids: the paraphrase prompt of training and the one-word prompt of embedding."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sempa.data.examples import Triplet
from sempa.errors import SempaError

SYSTEM = "You are a helpful assistant"
PARAPHRASE = 'Keep the same meaning of this sentence: "{sentence}", while making some changes.'
EOL_PREFIX, EOL_SUFFIX = 'This sentence : "', '" means in one word:"'


@dataclass(frozen=True)
class Preference:
    """Token ids of one prompt and its responses, best first; `prompt + responses[k]` is the whole conversation k.

    The last `closing` ids of every response are the template's (end of turn), not the answer's. `words` are the
    one-word prompts of the sentence and of its responses, where an objective embeds them; `sentence` is its text. A
    triplets file's ids are arrays of four bytes each; as lists, those of 275,601 triplets would fill two gigabytes.
    """

    prompt: Sequence[int]
    responses: tuple[Sequence[int], ...]
    line: int = 0
    closing: int = 0
    words: tuple[Sequence[int], ...] = ()
    sentence: str = ""


def encode_triplet(
    tokenizer: PreTrainedTokenizerBase, triplet: Triplet, *, ranking: bool = False, words: bool = False
) -> Preference:
    """Token ids of a triplet's paraphrase prompt with its chosen and rejected answers.

    `ranking` puts the neutral sentence between the two; `words` adds the one-word prompts.
    """
    responses = (triplet.chosen, triplet.neutral, triplet.rejected) if ranking else (triplet.chosen, triplet.rejected)
    preference = encode_responses(tokenizer, triplet.sentence, responses, triplet.line)
    if words:
        prompts = encode_one_word(tokenizer, [triplet.sentence, *responses])
        preference = replace(preference, words=tuple(array("i", ids) for ids in prompts))
    return preference


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, sentence: str, responses: Sequence[str], line: int = 0
) -> Preference:
    """Token ids of the paraphrase prompt and of its answers, best first (SemPA § 3, appendix prompt).

    The boundary is exact: each answer's ids are the rendering of the whole conversation minus the prompt's ids, so the
    end-of-turn token is part of the answer. Where a tokenizer merges across the boundary, the merged token belongs
    to the answer. Raises `SempaError` if the template leaves no boundary to find.
    """
    user = PARAPHRASE.format(sentence=sentence)
    prompt = render_prompt(tokenizer, user)
    wholes = [render_conversation(tokenizer, user, response) for response in responses]
    # What the template puts behind an answer (some templates strip the answer's own blanks).
    closing = wholes[0].rpartition(responses[0].strip())[2]
    prompt_ids, closing_ids, *whole_ids = encode_texts(tokenizer, [prompt, closing, *wholes])
    shared = min(common_prefix(prompt_ids, whole) for whole in whole_ids)
    if shared == 0:
        raise SempaError(
            "chat template: the prompt's rendering and the conversation's share no first token, "
            "so the response's boundary cannot be found"
        )
    answers = tuple(array("i", whole[shared:]) for whole in whole_ids)
    # Something of every answer stays its own.
    ends = (min(common_prefix(closing_ids[::-1], answer[::-1]), len(answer) - 1) for answer in answers)
    return Preference(array("i", whole_ids[0][:shared]), answers, line, min(ends), sentence=sentence)


def render_prompt(tokenizer: PreTrainedTokenizerBase, user: str) -> str:
    """The conversation up to where the assistant begins to answer (without a template: the text and a line feed)."""
    if tokenizer.chat_template is None:
        return f"{begin_of_text(tokenizer)}{user}\n"
    return _render(tokenizer, [{"role": "user", "content": user}], add_generation_prompt=True)


def render_conversation(tokenizer: PreTrainedTokenizerBase, user: str, assistant: str) -> str:
    """The whole conversation, end-of-turn token included."""
    if tokenizer.chat_template is None:
        return f"{begin_of_text(tokenizer)}{user}\n{assistant}{tokenizer.eos_token or ''}"
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return _render(tokenizer, messages, add_generation_prompt=False)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of texts that already hold their special tokens."""
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def clean_sentence(sentence: str) -> str:
    """The evaluation protocol's clean-up: one blank between words, a full stop at the end, no double quote inside.

    Jiang et al., Scaling Sentence Embeddings with Large Language Models (arXiv 2307.16645), as in SemPA's evaluation.
    """
    sentence = " ".join(sentence.split())
    if sentence and sentence[-1] not in ".?\"'":
        sentence += "."
    sentence = sentence.replace('"', "'")
    return sentence[:-1] + "." if sentence.endswith("?") else sentence


def encode_one_word(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], prefix: str = EOL_PREFIX
) -> list[list[int]]:
    """Token ids of the PromptEOL prompt `This sentence : "…" means in one word:"` around each cleaned sentence.

    `prefix` is what stands before the sentence, its opening quote included.
    """
    return encode_plain(tokenizer, [f"{prefix}{clean_sentence(s)}{EOL_SUFFIX}" for s in sentences])


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of plain texts, behind a begin-of-text token where this tokenizer puts one."""
    return encode_texts(tokenizer, [begin_of_text(tokenizer) + text for text in texts])


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading token ids two sequences share."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    try:
        return tokenizer.apply_chat_template([{"role": "system", "content": SYSTEM}, *messages], **options)
    except TemplateError:
        # Gemma's and the first Mistral templates refuse a system turn.
        pass
    except (TypeError, ValueError) as error:
        raise SempaError(f"chat template: cannot be rendered: {error}") from error
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except (TemplateError, TypeError, ValueError) as error:
        raise SempaError(f"chat template: cannot be rendered: {error}") from error


def begin_of_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The begin-of-text token where this tokenizer puts one before plain text, else nothing."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token if tokenizer.bos_token and ids and ids[0] == tokenizer.bos_token_id else ""
