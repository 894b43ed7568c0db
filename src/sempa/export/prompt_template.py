"""The one-word prompt as a chat template, for tools that would otherwise embed the bare sentence."""

from transformers import PreTrainedTokenizerBase

from sempa.batching.prompts import EOL_PREFIX, EOL_SUFFIX, begin_of_text

TEMPLATE_FILE = "prompteol.jinja"
# `prompts.clean_sentence` in what Python's Jinja and llama.cpp's have in common. llama.cpp splits at blanks alone, and
# hands out the empty texts between two of them.
_CLEAN = """\
{%- set said = messages | selectattr('role', 'equalto', 'user') | list | last -%}
{%- set words = said.content.replace('\\n', ' ').replace('\\t', ' ').split() | reject('equalto', '') -%}
{%- set sentence = words | join(' ') -%}
{%- set ends = sentence.endswith('.') or sentence.endswith('?') or sentence.endswith('"') or sentence.endswith("'") -%}
{%- if sentence and not ends -%}{%- set sentence = sentence ~ '.' -%}{%- endif -%}
{%- set sentence = sentence | replace('"', "'") -%}
{%- if sentence.endswith('?') -%}{%- set sentence = sentence[:-1] ~ '.' -%}{%- endif -%}
"""


def prompt_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Clean-up and PromptEOL around the last user message, as a Jinja template that gives `encode_one_word`'s text."""
    return f"{_CLEAN}{begin_of_text(tokenizer)}{EOL_PREFIX}{{{{ sentence }}}}{EOL_SUFFIX}"
