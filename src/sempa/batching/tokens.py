"""From text to token ids, with control tokens where a chat template writes them and nowhere else.

The text of a user may hold anything, also what looks like a control token: there it is text.
"""

import functools
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sempa.errors import SempaError

# Breaks control tokens in text until `encode_texts` has looked for genuine ones. No text holds half a surrogate pair.
_BREAK = "\ud800"


def as_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with its control tokens broken, so that `encode_texts` reads them as the characters they are.

    Raises `SempaError` for half a surrogate pair, which stands for a byte that is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise SempaError(f"text: holds the lone surrogate {code}, which is no character (not UTF-8?)") from error
    return control_tokens(tokenizer).sub(_broken, text)


def _broken(found: re.Match[str]) -> str:
    token = found[0].lstrip()
    return found[0][: -len(token)] + _BREAK + _BREAK.join(token)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that hold their control tokens already, as `render_prompt` and its like give them."""
    ids = tokenizer([text.replace(_BREAK, "") for text in texts], add_special_tokens=False)["input_ids"]
    return [_encode_broken(tokenizer, text) if _BREAK in text else own for text, own in zip(texts, ids, strict=True)]


def common_prefix(first: Sequence, second: Sequence) -> int:
    """How many leading token ids (or characters) two sequences share."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)


def begin_of_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The begin-of-text token where this tokenizer puts one before plain text, else nothing."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token if tokenizer.bos_token and ids and ids[0] == tokenizer.bos_token_id else ""


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches the special tokens, and other added ones that the chat template writes, with the blanks they swallow."""
    return _control_pattern(tokenizer, len(tokenizer), str(tokenizer.chat_template))


@functools.lru_cache(maxsize=8)
def _control_pattern(tokenizer: PreTrainedTokenizerBase, size: int, template: str) -> re.Pattern[str]:
    tokens = [
        token
        for token in tokenizer.added_tokens_decoder.values()
        # Gemma adds runs of blanks, which are no more than text.
        if token.special or (token.content in template and not token.content.isspace())
    ]
    # A longer token is tried before another that it begins with.
    tokens.sort(key=lambda token: -len(token.content))
    blanks = {False: "", True: r"\s*"}
    patterns = (blanks[token.lstrip] + re.escape(token.content) + blanks[token.rstrip] for token in tokens)
    return re.compile(f"(?<!{_BREAK})(?:{'|'.join(patterns) or '(?!)'})")


def _encode_broken(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text in which genuine control tokens stand beside broken ones.

    The text between two genuine ones is tokenized whole, as if no token had been added to the vocabulary.
    """
    ids: list[int] = []
    end = 0
    for token in control_tokens(tokenizer).finditer(text):
        ids += _encode_characters(tokenizer, text[end : token.start()], begins=not end)
        ids.append(tokenizer.convert_tokens_to_ids(token[0].strip()))
        end = token.end()
    return ids + _encode_characters(tokenizer, text[end:], begins=not end)


def _encode_characters(tokenizer: PreTrainedTokenizerBase, text: str, begins: bool) -> list[int]:
    """Token ids of characters alone, at the beginning of a text or behind a control token."""
    text = text.replace(_BREAK, "")
    if not tokenizer.is_fast:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    # Step by step: `split_special_tokens` changes the tokenizer for all threads, and knows special tokens only.
    inner = tokenizer.backend_tokenizer
    if inner.normalizer is not None:
        text = inner.normalizer.normalize_str(text)
    pieces = [text] if inner.pre_tokenizer is None else [p for p, _ in inner.pre_tokenizer.pre_tokenize_str(text)]
    if not begins and pieces and getattr(inner.pre_tokenizer, "prepend_scheme", None) == "first":
        # The blank that this kind of tokenizer puts before a text's first word, and before no other.
        pieces[0] = pieces[0][not text.startswith((" ", inner.pre_tokenizer.replacement)) :]
    return [token.id for piece in pieces for token in inner.model.tokenize(piece)]
