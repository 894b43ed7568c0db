"""Chat templates of every temper: thoughts, dates, dropped contents; and control tokens in text, which are text."""

import datetime

import numpy as np
import pytest
import torch
from conftest import make_llama, make_tokenizer, tiny_texts
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sempa import Embedder, SempaError
from sempa.batching.prompts import (
    PARAPHRASE,
    SYSTEM,
    TODAY,
    _encode_escaped,
    as_text,
    encode_one_word,
    encode_plain,
    encode_responses,
    encode_texts,
    encode_triplet,
    end_of_turn,
    render_conversation,
    render_messages,
    render_prompt,
)
from sempa.data.triplets import Triplet
from sempa.evaluation.eval_texts import EvalText, encode_eval_texts
from sempa.model.base import BaseModel
from sempa.model.sampling import end_tokens, sample

TRIPLET = Triplet("Two dogs run.", "Dogs are running.", "The dogs sleep.")
CHATML = ("<|im_start|>", "<|im_end|>")
TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# Shaped like Qwen 3: the last answer gets an empty block of thoughts, and so does the prompt once thinking is off.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' + m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# Thoughts that nothing turns off: the prompt opens a block that a whole conversation does not have.
ALWAYS_THINKING = TURNS + OPENING.replace("assistant\n", "assistant\n<think>\n")
# A whole conversation has an empty block, the prompt never.
LATE_THINKING = THINKING.replace("enable_thinking is defined and enable_thinking is false", "false")


def chat(template, special=CHATML, **options):
    return make_tokenizer(special, template, **options)


def thinking(template):
    tokenizer = chat(template)
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


# Thoughts


@pytest.mark.parametrize("template", [THINKING, ALWAYS_THINKING, LATE_THINKING])
def test_an_answer_is_its_text_and_its_end_of_turn_whatever_the_template_does_with_thoughts(template):
    tokenizer = thinking(template)
    preference = encode_triplet(tokenizer, TRIPLET)
    for text, response in zip((TRIPLET.chosen, TRIPLET.rejected), preference.responses, strict=True):
        assert tokenizer.decode(response) == f"{text}<|im_end|>\n"
        assert tokenizer.decode(response[: -preference.closing]) == text


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_a_model_that_can_think_is_asked_to_answer_at_once_in_training_and_in_generation(switch):
    tokenizer = thinking(THINKING.replace("enable_thinking", switch))
    preference = encode_triplet(tokenizer, TRIPLET)
    prompt = render_prompt(tokenizer, PARAPHRASE.format(sentence=TRIPLET.sentence))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert list(preference.prompt) == encode_texts(tokenizer, [prompt])[0]


@pytest.mark.parametrize("text", ["im", "think", "assistant", "end|>", "</think>", "n"])
def test_an_answer_that_looks_like_a_part_of_the_template_keeps_its_boundary(text):
    for tokenizer in (chat(TURNS + OPENING), thinking(THINKING)):
        preference = encode_responses(tokenizer, "A man.", [text, "b"])
        assert tokenizer.decode(preference.responses[0]) == f"{text}<|im_end|>\n"
        assert tokenizer.decode(preference.responses[0][: -preference.closing]) == text


# Dates

DATED = (
    "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + ', ' + strftime_now('%A %Y-%m-%d') + '<|im_end|>\n'"
    " }}{% if strftime_now is defined %}{% set day = strftime_now('%B %-d') %}{{ day }}{% endif %}" + TURNS + OPENING
)


def test_a_date_in_a_template_is_the_same_on_every_day(monkeypatch):
    tokenizer = chat(DATED)
    rendered = render_prompt(tokenizer, "Hello.")
    assert rendered.startswith("<|im_start|>system\nToday: 01 Jan 2025, Wednesday 2025-01-01<|im_end|>\nJanuary 1")
    assert datetime.date(2025, 1, 1) == TODAY
    preference = encode_triplet(tokenizer, TRIPLET)
    import transformers.utils.chat_template_utils as rendering

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, *_):
            return cls(2031, 5, 6)

    monkeypatch.setattr(rendering, "datetime", Tomorrow)
    rendering._compile_jinja_template.cache_clear()
    assert "2031" in tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert render_prompt(tokenizer, "Hello.") == rendered
    assert encode_triplet(tokenizer, TRIPLET) == preference


def test_other_templates_are_rendered_as_transformers_does():
    tokenizer = chat(TURNS + OPENING)
    messages = [{"role": "user", "content": "Hello."}]
    rendered = render_messages(tokenizer, messages, add_generation_prompt=True)
    assert rendered == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


# Contents

PARTS = "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% for p in m.content if p.text %}{{ p.text }}{% endfor %}"
PARTS += "{{ '<|im_end|>' }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "role"),
    [
        (PARTS, "user"),
        (TURNS.replace("m.content", "(m.content | e)"), "user"),
        (TURNS.replace("m.content", "(m.content if m.role == 'user' else '')"), "assistant"),
        (TURNS.replace("for m in messages", "for m in messages if m.role != 'assistant'"), "assistant"),
        (TURNS.replace("m.content", "m.content[:20]"), "user"),
        (TURNS.replace("m.content", "m.content | upper"), "user"),
        (TURNS.replace("in messages", "in messages if m.role == 'system' or messages[0].role != 'system'"), "user"),
    ],
)
def test_a_template_that_drops_or_changes_a_content_is_refused(template, role):
    with pytest.raises(SempaError, match=f"chat template: changes or drops what the {role} says; expected one"):
        encode_triplet(chat(template + OPENING), TRIPLET)


def test_every_turn_has_to_be_written_also_one_that_another_holds():
    says = [{"role": role, "content": text} for role, text in (("user", "Hello there."), ("assistant", "Hello"))]
    whole = render_messages(chat(TURNS + OPENING), says, add_generation_prompt=False)
    assert whole.count("Hello") == 2
    dropping = TURNS.replace("for m in messages", "for m in messages if m.role != 'assistant'")
    with pytest.raises(SempaError, match="changes or drops what the assistant says"):
        render_messages(chat(dropping + OPENING), says, add_generation_prompt=False)


def test_the_time_of_rendering_is_linear_in_the_turns(tokenizer):
    """Each turn is searched for behind the one before: a server must not spend minutes on a body of eight megabytes."""
    says = [{"role": "user", "content": f"m{number}"} for number in range(40_000)]

    class Counted(str):
        searched = 0

        def find(self, what, start=0):
            found = super().find(what, start)
            Counted.searched += found - start
            return found

    class Template:
        chat_template = "x"

        def get_chat_template(self):
            return self.chat_template

        def apply_chat_template(self, turns, **_):
            return Counted("".join(f"<{turn['content']}>" for turn in turns))

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __len__(self):
            return len(tokenizer)

    rendered = render_messages(Template(), says, add_generation_prompt=False)
    assert 0 < Counted.searched <= len(rendered)


@pytest.mark.parametrize("text", ["a <b> & c", 'it\'s "quoted"', "{{ messages }}", "a\n\nb", "ρ é 我们"])
def test_any_text_comes_through_a_template_that_writes_it_or_only_strips_it(text):
    for template in (TURNS, TURNS.replace("m.content", "m.content | trim")):
        tokenizer = chat(template + OPENING)
        preference = encode_responses(tokenizer, text, [f" {text} ", "b"])
        assert tokenizer.decode(preference.responses[0]).strip() == f"{text}{' ' * ('trim' not in template)}<|im_end|>"


# Ends of an answer


def test_the_ends_of_an_answer_are_those_of_model_tokenizer_and_template():
    tokenizer = chat(TURNS + OPENING, ("<|endoftext|>", "<|end|>", *CHATML))
    tokenizer.eos_token = "<|endoftext|>"
    base = BaseModel(make_llama(), tokenizer, "tiny")
    base.model.generation_config.eos_token_id, base.model.config.eos_token_id = [5, 7], 9
    names = ["<|endoftext|>", "<|im_end|>"]
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_tokens(base) == sorted([5, 7, 9, *tokenizer.convert_tokens_to_ids(names)])
    base.model.generation_config.eos_token_id = base.model.config.eos_token_id = None
    assert end_tokens(base) == sorted(tokenizer.convert_tokens_to_ids(names))


def test_generation_stops_at_the_end_of_the_turn(monkeypatch):
    """The model's own config knows another end token than the template writes."""
    tokenizer = chat(TURNS + OPENING, ("<|endoftext|>", *CHATML))
    tokenizer.eos_token = "<|endoftext|>"
    base = BaseModel(make_llama(), tokenizer, "tiny")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    monkeypatch.setattr("sempa.model.sampling.choose", lambda logprobs, *_: torch.full((len(logprobs),), end))
    ((answer,),) = sample(base, ["Hello."], max_new_tokens=5)
    assert (answer.tokens, answer.ended) == ([end], True)


def test_without_a_template_the_end_is_the_tokenizers():
    assert end_of_turn(make_tokenizer(("<s>", "</s>"), None)) == make_tokenizer(("<s>", "</s>"), None).eos_token_id


# Control tokens in text


def spiece(scheme):
    """A tokenizer of the kind of Llama 2's and Mistral's, with the variants of the blank before the first word."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "normalizer":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    inner.train_from_iterator([" ".join(texts) for texts in tiny_texts()], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[3:]})
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    return tokenizer


TOKENIZERS = {
    "bytes": chat(TURNS + OPENING),
    "thinking": thinking(THINKING),
    **{scheme: spiece(scheme) for scheme in ("first", "always", "never", "normalizer")},
}
WORDS = st.sampled_from(["A man", " pets", "a", "<", "|", "im_end", "\n", " ", "é", "dog.", "s>", "[", "INST]", "</"])
CONTROL = st.sampled_from([*CHATML, "<s>", "</s>", "[INST]", "[/INST]", "<think>", "</think>", "<|im_", "end|>"])
MIXED = st.lists(WORDS | CONTROL, max_size=8).map("".join)


def control_ids(tokenizer):
    return {number for number, token in tokenizer.added_tokens_decoder.items() if not token.content.startswith("<0x")}


def text_ids(tokenizer, text):
    """What a tokenizer makes of a text that had no token added to its vocabulary."""
    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    inner.encode_special_tokens = True
    plain = PreTrainedTokenizerFast(tokenizer_object=inner)
    return plain(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=80)
@given(text=MIXED)
def test_control_tokens_in_a_plain_text_are_read_as_characters(name, text):
    tokenizer = TOKENIZERS[name]
    (ids,) = encode_plain(tokenizer, [text])
    assert not set(ids) & control_ids(tokenizer)
    if "think>" not in text:
        assert ids == text_ids(tokenizer, text)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=80)
@given(user=MIXED, answer=MIXED.filter(str.strip))
def test_a_conversation_has_the_templates_control_tokens_and_no_others(name, user, answer):
    tokenizer = TOKENIZERS[name]
    (ids,) = encode_texts(tokenizer, [render_conversation(tokenizer, user, answer)])
    (plain,) = encode_texts(tokenizer, [render_conversation(tokenizer, "x", "y")])

    def controls(sequence):
        return [number for number in sequence if number in control_ids(tokenizer)]

    assert controls(ids) == controls(plain)
    preference = encode_responses(tokenizer, user, [answer, "y"])
    assert controls([*preference.prompt, *preference.responses[0]]) == controls(plain)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=80)
@given(words=st.lists(WORDS, max_size=8).map("".join))
def test_ordinary_text_between_control_tokens_gets_the_tokenizers_own_ids(name, words):
    """The path for broken control tokens, on a text that has none of them."""
    tokenizer = TOKENIZERS[name]
    assume(as_text(tokenizer, words) == words)
    conversation = render_conversation(tokenizer, words, "The dog is petted by a man.")
    for rendered in (conversation, f"{words}{tokenizer.eos_token}{words}{tokenizer.eos_token}"):
        assert _encode_escaped(tokenizer, rendered) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_tokens_that_swallow_blanks_and_tokens_of_one_character_are_broken_too():
    tokenizer = chat(TURNS + OPENING)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<m>", lstrip=True, rstrip=True), "☃"]})
    for text in ("a <m> b", " <m>", "a☃b", "☃", "<m><m>"):
        assert _encode_escaped(tokenizer, text) == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert encode_plain(tokenizer, [text]) == [text_ids(tokenizer, text)]
        rendered = f"<|im_start|>{text} <m> {as_text(tokenizer, text)}<|im_end|>"
        expected = tokenizer(f"<|im_start|>{text} <m> x<|im_end|>", add_special_tokens=False)["input_ids"]
        (ids,) = encode_texts(tokenizer, [rendered])
        assert [i for i in ids if i in control_ids(tokenizer)] == [i for i in expected if i in control_ids(tokenizer)]


def test_a_text_of_blanks_is_read_in_linear_time_by_a_token_that_swallows_them():
    tokenizer = chat(TURNS + OPENING)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<m>", lstrip=True)]})
    blanks = " " * 400_000
    assert as_text(tokenizer, blanks + "a") == blanks + "a"


def test_a_control_token_that_another_begins_with_is_not_taken_for_it():
    tokenizer = chat(TURNS + OPENING, ("<|im", *CHATML))
    rendered = render_conversation(tokenizer, "A man pets a dog.", "A dog is petted.")
    assert _encode_escaped(tokenizer, rendered) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_a_control_token_that_a_tokenizer_gets_later_is_broken_too():
    tokenizer = chat(TURNS + OPENING)
    assert as_text(tokenizer, "a <m> b") == "a <m> b"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<m>"]})
    assert as_text(tokenizer, "a <m> b") != "a <m> b"


def test_an_added_token_of_blanks_is_text():
    tokenizer = chat(TURNS + OPENING)
    tokenizer.add_tokens(["\n"])
    assert as_text(tokenizer, "a\nb") == "a\nb"


def test_a_control_token_in_a_sentence_is_embedded_as_the_characters_it_has(tiny_folder):
    embedder = Embedder(str(tiny_folder), dtype="float32", device="cpu")
    sentence = "The end <|im_end|> and on."
    (ids,) = encode_one_word(embedder.base.tokenizer, [sentence])
    assert ids == text_ids(embedder.base.tokenizer, 'This sentence : "The end <|im_end|> and on." means in one word:"')
    with torch.no_grad():
        expected = embedder.base.model.model(torch.tensor([ids])).last_hidden_state[0, -1].numpy()
    np.testing.assert_allclose(embedder.encode(sentence), expected, rtol=1e-4, atol=1e-5)


def test_half_a_surrogate_pair_is_refused_in_every_text():
    tokenizer = chat(TURNS + OPENING)
    for text in ("a \ud800 b", "\udcff"):
        for encode in (lambda t: encode_plain(tokenizer, [t]), lambda t: render_prompt(tokenizer, t)):
            with pytest.raises(SempaError, match=r"text: is not UTF-8 text .*surrogates not allowed"):
                encode(text)


def test_the_system_turn_is_the_templates_own_text():
    assert SYSTEM in render_prompt(chat(TURNS + OPENING), "Hello.")


# Answers that lie elsewhere than the prompt for generation lets expect

SYSTEM_LAST = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' }}{% if loop.last %}{{ system | default("
    "'Be brief. ') }}{% endif %}{{ m.content + '[/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + "
    "'<|im_end|>' }}{% endif %}{% endfor %}"
)


def test_an_answer_that_is_a_part_of_the_sentence_is_not_found_there():
    """Mistral's templates write the system text only where the user speaks last."""
    tokenizer = chat(SYSTEM_LAST)
    preference = encode_responses(tokenizer, "Two dogs run on grass.", ["Two dogs run", "A cat"])
    assert tokenizer.decode(preference.prompt).strip().endswith("while making some changes.[/INST]")
    assert tokenizer.decode(preference.responses[0]).strip() == "Two dogs run<|im_end|>"


def test_of_such_a_question_the_answer_alone_is_scored():
    tokenizer = chat(SYSTEM_LAST)
    (one,) = encode_eval_texts(tokenizer, [EvalText("The answer is four.", "What is two plus two?")], 512)
    assert tokenizer.decode(one.tokens[one.first :]).strip() == "The answer is four.<|im_end|>"


@pytest.mark.parametrize("scheme", ["first", "always", "never", "normalizer"])
def test_a_plain_prompt_has_the_tokenizers_own_ids(scheme):
    tokenizer = spiece(scheme)
    begin = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=begin)
    (ids,) = encode_one_word(tokenizer, ["A man pets a dog."])
    assert ids == tokenizer('This sentence : "A man pets a dog." means in one word:"')["input_ids"]
