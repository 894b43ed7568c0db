"""Prompts: exact token boundaries under many chat templates, and the evaluation protocol's clean-up."""

from array import array
from pathlib import Path

import pytest
from conftest import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from sempa.batching.prompts import (
    PARAPHRASE,
    SYSTEM,
    clean_sentence,
    encode_one_word,
    encode_responses,
    encode_texts,
    encode_triplet,
    prefix_length,
    render_conversation,
    render_prompt,
)
from sempa.data.triplets import Triplet
from sempa.model.base import load_base

TEMPLATES = Path(__file__).parent / "templates"
# Special tokens (the last ends a turn or the text), whether a system turn is possible, what ends the answer.
FAMILIES = {
    "chatml": (("<|im_start|>", "<|im_end|>"), True, "<|im_end|>\n"),
    "qwen": (("<|im_start|>", "<|im_end|>"), True, "<|im_end|>\n"),
    "llama2": (("<s>", "</s>"), True, " </s>"),
    "llama3": (("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), True, "<|eot_id|>"),
    "gemma": (("<bos>", "<start_of_turn>", "<end_of_turn>"), False, "<end_of_turn>\n"),
    "mistral": (("<s>", "</s>"), False, "</s>"),
}
TRIPLET = Triplet("Two dogs run.", "Dogs are running.", "The dogs sleep.", line=7)


def chat_tokenizer(name):
    tokenizer = make_tokenizer(FAMILIES[name][0], (TEMPLATES / f"{name}.jinja").read_text().rstrip("\n"))
    tokenizer.bos_token = FAMILIES[name][0][0]
    return tokenizer


def turns(name, answer):
    system = [{"role": "system", "content": SYSTEM}] if FAMILIES[name][1] else []
    user = PARAPHRASE.format(sentence=TRIPLET.sentence)
    return [*system, {"role": "user", "content": user}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_and_response_tokens_are_the_templates_rendering_of_the_conversation(name):
    tokenizer = chat_tokenizer(name)
    preference = encode_triplet(tokenizer, TRIPLET)
    for answer, response in zip((TRIPLET.chosen, TRIPLET.rejected), preference.responses, strict=True):
        whole = tokenizer.apply_chat_template(turns(name, answer), tokenize=True, return_dict=False)
        assert [*preference.prompt, *response] == whole
    assert preference.line == 7


@pytest.mark.parametrize("name", FAMILIES)
def test_the_response_is_the_answer_with_its_end_of_turn_and_nothing_of_the_prompt(name):
    tokenizer = chat_tokenizer(name)
    preference = encode_triplet(tokenizer, TRIPLET)
    text = tokenizer.decode(preference.responses[0])
    assert text.lstrip(" ") == TRIPLET.chosen + FAMILIES[name][2]
    assert tokenizer.eos_token_id in preference.responses[0]
    for answer, response in zip((TRIPLET.chosen, TRIPLET.rejected), preference.responses, strict=True):
        assert tokenizer.decode(response[: -preference.closing]).strip(" ") == answer
        assert tokenizer.decode(response[-preference.closing :]) == FAMILIES[name][2]
    generation = tokenizer.apply_chat_template(turns(name, "")[:-1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(preference.prompt).rstrip(" ") == generation.rstrip(" ")


def test_a_base_model_without_a_template_gets_a_plain_prompt_that_ends_in_its_end_of_text():
    tokenizer = make_tokenizer(("<s>", "</s>"), None)
    preference = encode_triplet(tokenizer, TRIPLET)
    assert tokenizer.decode(preference.prompt) == PARAPHRASE.format(sentence=TRIPLET.sentence) + "\n"
    assert tokenizer.decode(preference.responses[1]) == TRIPLET.rejected + "</s>"


def test_a_token_merged_across_the_boundary_belongs_to_the_response():
    tokenizer = make_tokenizer(
        template="{{ messages[1]['content'] }}{% if messages[2] %}{{ messages[2]['content'] }}{% endif %}"
    )
    preference = encode_triplet(tokenizer, Triplet("x", "man", "mane"))
    whole = tokenizer(PARAPHRASE.format(sentence="x") + "man")["input_ids"]
    assert [*preference.prompt, *preference.responses[0]] == whole


def test_the_embedded_models_template_gives_the_published_prompt():
    tokenizer = load_base("smollm2-135m").tokenizer
    user = PARAPHRASE.format(sentence="Two dogs run.")
    assert user == 'Keep the same meaning of this sentence: "Two dogs run.", while making some changes.'
    assert render_prompt(tokenizer, user) == (
        f"<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert render_conversation(tokenizer, user, "Dogs run.").endswith("assistant\nDogs run.<|im_end|>\n")


@pytest.mark.parametrize(
    ("sentence", "cleaned"),
    [
        ("A man runs", "A man runs."),
        ("A man runs.", "A man runs."),
        ("Who runs?", "Who runs."),
        ('He said "go"', "He said 'go'"),
        ("the men '", "the men '"),
        ("two  blanks\tand\na feed", "two blanks and a feed."),
        ("wow!", "wow!."),
        ("", ""),
    ],
)
def test_clean_up_follows_the_protocol(sentence, cleaned):
    assert clean_sentence(sentence) == cleaned


@given(st.text())
def test_clean_up_is_idempotent_and_leaves_no_quote_that_could_end_the_prompt(sentence):
    cleaned = clean_sentence(sentence)
    assert '"' not in cleaned
    assert clean_sentence(cleaned) == cleaned


def test_the_one_word_prompt_ends_with_the_open_quote():
    tokenizer = make_tokenizer()
    (ids,) = encode_one_word(tokenizer, ["A man runs"])
    assert tokenizer.decode(ids) == 'This sentence : "A man runs." means in one word:"'


def test_a_begin_of_text_token_is_put_before_plain_prompts_only_where_the_tokenizer_does_so():
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(("<s>", "</s>"), None)
    tokenizer.bos_token = "<s>"
    assert encode_one_word(tokenizer, ["a"])[0][0] != tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    ids = encode_one_word(tokenizer, ["a"])[0]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert encode_triplet(tokenizer, TRIPLET).prompt[0] == tokenizer.bos_token_id
    assert encode_texts(tokenizer, ["a"])[0][0] != tokenizer.bos_token_id


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_common_prefix_is_common_and_cannot_be_longer(first, second):
    n = prefix_length(first, second)
    assert first[:n] == second[:n]
    assert n == min(len(first), len(second)) or first[n] != second[n]


def test_an_answer_keeps_a_token_of_its_own_even_when_it_looks_like_the_templates_end():
    tokenizer = make_tokenizer()
    preference = encode_responses(tokenizer, "A man sits.", ["<|im_end|>\n", "<|im_end|>\n"])
    assert all(len(response) > preference.closing for response in preference.responses)


def test_token_ids_of_triplets_take_four_bytes_each(tokenizer):
    preference = encode_triplet(tokenizer, TRIPLET, one_word=True)
    for ids in (preference.prompt, *preference.responses, *preference.one_word):
        assert (type(ids), ids.itemsize) == (array, 4)


def test_a_token_merged_across_the_end_of_an_answer_belongs_to_the_answer():
    template = "{% for message in messages %}{{ message['content'] + 'ted<|im_end|>' }}{% endfor %}"
    tokenizer = make_tokenizer(template=template)
    preference = encode_responses(tokenizer, "A dog.", ["It is pet", "It is 1"])
    closings = [tokenizer.decode(list(ids)[len(ids) - preference.closing :]) for ids in preference.responses]
    assert closings == ["<|im_end|>"] * 2
