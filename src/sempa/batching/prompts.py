"""From text to token ids: the paraphrase prompt of training and the one-word prompt of embedding.

Only the chat template writes control tokens. A user's text may contain anything, including what looks like a control
token; it is tokenized as plain text.
"""

import datetime
import functools
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase as Tokenizer

from sempa.data.triplets import Triplet
from sempa.errors import SempaError

SYSTEM = "You are a helpful assistant"
PARAPHRASE = 'Keep the same meaning of this sentence: "{sentence}", while making some changes.'
EOL_PREFIX, EOL_SUFFIX = 'This sentence : "', '" means in one word:"'
# Templates that write today's date write this one: a run that is resumed tomorrow is the same run, and a figure does
# not depend on the day.
TODAY = datetime.date(2025, 1, 1)
_DATE_CODES = ("-d", "-m", *"aAbBdmyYjHMSIp")
_FIXED_DATE = "".join(f" | replace('%{code}', '{TODAY.strftime(f'%{code}')}')" for code in _DATE_CODES)
_FIXED_DATE = f"{{%- macro strftime_now(format) -%}}{{{{ format{_FIXED_DATE} }}}}{{%- endmacro -%}}"
# Models that can think before they answer are asked to answer at once; templates without the switch ignore it.
_NO_THINKING = {"enable_thinking": False, "thinking": False}
# Stands for an answer: a private-use character, found by its last occurrence.
_ANSWER = "\ue000"
# Escapes control tokens in text, so that `encode_texts` finds only genuine ones. No text has a lone surrogate.
_ESCAPE = "\ud800"


@dataclass(frozen=True)
class Preference:
    """Token ids of one prompt and its responses, best first; `prompt + responses[k]` is the whole conversation k.

    The last `closing` ids of every response are the template's (end of turn), not the answer's. `one_word` holds the
    one-word prompts of the sentence, the best and the worst response, where an objective embeds them; `sentence` is its
    text. A file's ids are arrays of four bytes each; as lists, those of 275,601 triplets would fill two gigabytes.
    """

    prompt: Sequence[int]
    responses: tuple[Sequence[int], ...]
    line: int = 0
    closing: int = 0
    one_word: tuple[Sequence[int], ...] = ()
    sentence: str = ""


def encode_triplet(
    tokenizer: Tokenizer, triplet: Triplet, *, ranking: bool = False, one_word: bool = False
) -> Preference:
    """Token ids of a triplet's paraphrase prompt with its chosen and rejected responses.

    `ranking` puts the neutral sentence between the two; `one_word` adds the one-word prompts.
    """
    responses = (triplet.chosen, triplet.neutral, triplet.rejected) if ranking else (triplet.chosen, triplet.rejected)
    preference = encode_responses(tokenizer, triplet.sentence, responses)
    prompts = encode_one_word(tokenizer, [triplet.sentence, triplet.chosen, triplet.rejected]) if one_word else []
    return replace(preference, line=triplet.line, one_word=tuple(array("i", ids) for ids in prompts))


def encode_responses(tokenizer: Tokenizer, sentence: str, responses: Sequence[str]) -> Preference:
    """Token ids of the paraphrase prompt and of its responses, best first (SemPA § 3, appendix prompt).

    The boundary is exact: a response's ids are those of the whole conversation from its text on, so the end of turn
    belongs to the response, and a template's empty block of thoughts to the prompt. Where a tokenizer merges across the
    boundary, the merged token belongs to the response. Raises `SempaError` for a template that changes a text.
    """
    user = PARAPHRASE.format(sentence=sentence)
    wholes = [render_conversation(tokenizer, user, response) for response in responses]
    prompt, closing = around_answer(tokenizer, user)
    prompt_ids, closing_ids, *whole_ids = encode_texts(tokenizer, [prompt, closing, *wholes])
    shared = min(prefix_length(prompt_ids, whole) for whole in whole_ids)
    response_ids = tuple(array("i", whole[shared:]) for whole in whole_ids)
    ends = (prefix_length(closing_ids[::-1], ids[::-1]) for ids in response_ids)
    return Preference(array("i", whole_ids[0][:shared]), response_ids, closing=min(ends), sentence=sentence)


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """The token by which the template ends an answer; None where it has none."""
    found = _control_tokens(tokenizer).search(around_answer(tokenizer, "Hello.")[1])
    return tokenizer.convert_tokens_to_ids(found[0].strip()) if found else None


def render_prompt(tokenizer: Tokenizer, user: str) -> str:
    """The conversation up to where the assistant begins to answer (without a template: the text and a line feed)."""
    return _render_with_system(tokenizer, [{"role": "user", "content": user}], add_generation_prompt=True)


def render_conversation(tokenizer: Tokenizer, user: str, assistant: str) -> str:
    """The whole conversation, end-of-turn token included."""
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return _render_with_system(tokenizer, messages, add_generation_prompt=False)


def render_messages(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """Render turns (`role` and `content` each) with the tokenizer's chat template, for `encode_texts`.

    Thinking is off, the date is `TODAY`, and control tokens in a `content` are plain text. Raises `SempaError` when the
    template fails or does not write a user's or an assistant's content as it is.
    """
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _FIXED_DATE + template
    turns = [{**message, "content": as_text(tokenizer, message["content"])} for message in messages]
    try:
        rendered = tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt, **_NO_THINKING
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise SempaError(f"chat template: cannot be rendered: {error}") from error
    end = 0
    for turn in (turn for turn in turns if turn["role"] != "system"):
        content = turn["content"].strip()
        # After the turn before it, so that a conversation of very many turns is searched once.
        if (begin := rendered.find(content, end)) < 0:
            raise SempaError(
                f"chat template: changes or drops what the {turn['role']} says; expected one that takes "
                "content as text (not as a list of parts), escapes nothing and keeps every turn, in its order"
            )
        end = begin + len(content)
    return rendered


def _render_with_system(tokenizer: Tokenizer, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    if tokenizer.chat_template is None:
        texts = "\n".join(as_text(tokenizer, message["content"]) for message in messages)
        return begin_of_text(tokenizer) + texts + ("\n" if add_generation_prompt else tokenizer.eos_token or "")
    system = {"role": "system", "content": SYSTEM}
    try:
        return render_messages(tokenizer, [system, *messages], add_generation_prompt=add_generation_prompt)
    except SempaError as error:
        # Gemma's and the first Mistral templates refuse a system turn.
        if not isinstance(error.__cause__, TemplateError):
            raise
    return render_messages(tokenizer, messages, add_generation_prompt=add_generation_prompt)


def around_answer(tokenizer: Tokenizer, user: str) -> tuple[str, str]:
    """What the template writes before and after the assistant's answer, which may differ from `render_prompt`."""
    prompt, _, closing = render_conversation(tokenizer, user, _ANSWER).rpartition(_ANSWER)
    return prompt, closing


def clean_sentence(sentence: str) -> str:
    """The evaluation protocol's clean-up: one blank between words, a full stop at the end, no double quote inside.

    Jiang et al., Scaling Sentence Embeddings with Large Language Models (arXiv 2307.16645), as in SemPA's evaluation.
    """
    sentence = " ".join(sentence.split())
    if sentence and sentence[-1] not in ".?\"'":
        sentence += "."
    sentence = sentence.replace('"', "'")
    return sentence[:-1] + "." if sentence.endswith("?") else sentence


def encode_one_word(tokenizer: Tokenizer, sentences: Sequence[str], prefix: str = EOL_PREFIX) -> list[list[int]]:
    """Token ids of the PromptEOL prompt `This sentence : "…" means in one word:"` around each cleaned sentence.

    `prefix` is what stands before the sentence, its opening quote included.
    """
    return encode_plain(tokenizer, [f"{prefix}{clean_sentence(s)}{EOL_SUFFIX}" for s in sentences])


def encode_plain(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of plain texts, behind a begin-of-text token where this tokenizer puts one."""
    # As an id: behind a written `<s>` some tokenizers do not begin a word.
    begin = [tokenizer.bos_token_id] if begin_of_text(tokenizer) else []
    return [begin + ids for ids in encode_texts(tokenizer, [as_text(tokenizer, text) for text in texts])]


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that already contain their control tokens, such as the result of `render_prompt`."""
    ids = tokenizer([text.replace(_ESCAPE, "") for text in texts], add_special_tokens=False)["input_ids"]
    return [_encode_escaped(tokenizer, text) if _ESCAPE in text else own for text, own in zip(texts, ids, strict=True)]


def as_text(tokenizer: Tokenizer, text: str) -> str:
    """The text with its control tokens escaped, so that `encode_texts` reads them as the characters they are.

    Raises `SempaError` for a lone surrogate, which in Python stands for a byte that is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SempaError(f"text: is not UTF-8 text ({error})") from error
    return _control_tokens(tokenizer).sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    token = found[0].lstrip()
    return found[0][: -len(token)] + _ESCAPE + _ESCAPE.join(token)


def prefix_length(first: Sequence, second: Sequence) -> int:
    """How many leading token ids two sequences share."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)


def begin_of_text(tokenizer: Tokenizer) -> str:
    """The begin-of-text token where this tokenizer puts one before plain text, else nothing."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token if tokenizer.bos_token and ids and ids[0] == tokenizer.bos_token_id else ""


def _control_tokens(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Matches special tokens, other added tokens that the chat template writes, and the whitespace that they strip."""
    return _control_pattern(tokenizer, len(tokenizer), str(tokenizer.chat_template))


@functools.lru_cache(maxsize=8)
def _control_pattern(tokenizer: Tokenizer, _size: int, template: str) -> re.Pattern[str]:
    # `_size` is part of the cache's key alone: a tokenizer may get further tokens.
    patterns = []
    # A longer token is tried before another that it begins with.
    for token in sorted(tokenizer.added_tokens_decoder.values(), key=lambda token: -len(token.content)):
        # Gemma adds runs of blanks, which are no more than text.
        if token.special or (token.content in template and not token.content.isspace()):
            patterns.append(r"(?:(?<!\s)\s+)?" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip)
    return re.compile(f"(?<!{_ESCAPE})(?:{'|'.join(patterns) or '(?!)'})")


def _encode_escaped(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text in which genuine control tokens stand beside escaped ones.

    The text between two genuine ones is tokenized whole, as if no token had been added to the vocabulary.
    """
    ids: list[int] = []
    end = 0
    for token in _control_tokens(tokenizer).finditer(text):
        ids += _encode_characters(tokenizer, text[end : token.start()], begins=not end)
        ids.append(tokenizer.convert_tokens_to_ids(token[0].strip()))
        end = token.end()
    return ids + _encode_characters(tokenizer, text[end:], begins=not end)


def _encode_characters(tokenizer: Tokenizer, text: str, begins: bool) -> list[int]:
    """Token ids of characters alone, at the beginning of a text or behind a control token."""
    # Step by step: `split_special_tokens` changes the tokenizer for all threads, and knows special tokens only.
    inner, text = tokenizer.backend_tokenizer, text.replace(_ESCAPE, "")
    if inner.normalizer is not None:
        text = inner.normalizer.normalize_str(text)
    pieces = [text] if inner.pre_tokenizer is None else [p for p, _ in inner.pre_tokenizer.pre_tokenize_str(text)]
    if not begins and pieces and getattr(inner.pre_tokenizer, "prepend_scheme", None) == "first":
        # The blank that this kind of tokenizer puts before a text's first word, and before no other.
        pieces[0] = pieces[0][not text.startswith((" ", inner.pre_tokenizer.replacement)) :]
    return [token.id for piece in pieces for token in inner.model.tokenize(piece)]
