"""Embeddings: the state at each sentence's own last token, independent of its company, padding and order."""

import csv
import json
import shutil
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from conftest import SHARED, with_adapter
from scipy.stats import spearmanr
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

import sempa
from sempa import Embedder, SempaError
from sempa.batching.prompts import clean_sentence
from sempa.commands.common import base_name
from sempa.embedding import embed as embedding
from sempa.embedding.corpus import describe
from sempa.embedding.embed import check_length, embed
from sempa.embedding.readouts import READOUTS, make_prompts
from sempa.embedding.readouts.plain import Prompt
from sempa.evaluation.table import parse_methods
from sempa.model import base as models
from sempa.model.adapter_files import adapter_readout, save_adapter
from sempa.model.base import BaseModel, load_base
from sempa.model.lora import adapter_disabled, add_lora, lora_layers, lora_parameters, merge_adapter
from sempa.model.sampling import sample

SENTENCES = ["A man runs.", "Two very small dogs are chasing a red ball in the park", "Hi", "A man runs.", "Who is it?"]


@pytest.fixture(scope="module")
def embedder(tiny_folder):
    return Embedder(tiny_folder, dtype="float32", device="cpu")


def one_by_one(embedder, sentence):
    """The oracle: one sentence, one forward of the plain model, no padding."""
    tokenizer, model = embedder.base.tokenizer, embedder.base.model
    text = f'This sentence : "{clean_sentence(sentence)}" means in one word:"'
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(tokens, output_hidden_states=True).hidden_states[embedder.layer][0, -1].numpy()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_an_embedding_is_the_last_tokens_hidden_state_whatever_the_batch(embedder, batch_size):
    vectors = embedder.encode(SENTENCES, batch_size=batch_size)
    expected = np.stack([one_by_one(embedder, s) for s in SENTENCES])
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 32)
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)


def test_another_layer_gives_that_layers_state(tiny_folder):
    for layer in (1, -2):
        embedder = Embedder(str(tiny_folder), layer=layer, dtype="float32", device="cpu")
        np.testing.assert_allclose(
            embedder.encode("A man runs."), one_by_one(embedder, "A man runs."), rtol=1e-4, atol=1e-5
        )


def test_a_single_string_and_an_empty_list_have_their_shapes(embedder):
    assert embedder.encode("A man runs.").shape == (32,)
    assert embedder.encode([]).shape == (0, 32)


def test_any_iterable_of_sentences_is_read_once(embedder):
    sentences = ["A dog runs.", "A cat sleeps."]
    assert np.array_equal(embedder.encode(iter(sentences)), embedder.encode(sentences))


def test_a_sentence_longer_than_the_model_can_read_is_named(embedder):
    expected = r"sentence 1 \('dog .*\): has [\d,]+ tokens in its prompt, expected at most the 2,048"
    with pytest.raises(SempaError, match=expected):
        embedder.encode(["A dog.", "dog " * 2100])


def test_normalized_embeddings_have_length_one_and_the_same_direction(embedder):
    plain, unit = embedder.encode(SENTENCES), embedder.encode(SENTENCES, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(plain, axis=1, keepdims=True), plain, rtol=1e-5)


def test_an_adapter_changes_the_embeddings_as_it_changes_the_model(tiny_folder, embedder, tmp_path):
    base = load_base(str(tiny_folder), "float32", "cpu")
    save_adapter(with_adapter(base.model, 0.1), tmp_path, str(tiny_folder))
    aligned = Embedder(str(tiny_folder), tmp_path, dtype="float32", device="cpu")
    assert np.abs(aligned.encode(SENTENCES) - embedder.encode(SENTENCES)).max() > 1e-2
    np.testing.assert_allclose(aligned.encode("Hi"), one_by_one(aligned, "Hi"), rtol=1e-4, atol=1e-5)


def test_wrong_arguments_are_named(tiny_folder, embedder):
    with pytest.raises(SempaError, match="readout: found 'median', expected one of mean, weighted-mean"):
        Embedder(str(tiny_folder), readout="median")
    with pytest.raises(SempaError, match="layer: found 3, expected -3 to 2"):
        Embedder(str(tiny_folder), layer=3)
    with pytest.raises(SempaError, match="layer: found -4, expected -3 to 2"):
        Embedder(str(tiny_folder), layer=-4)
    for layer in (None, "2", 1.5):
        with pytest.raises(SempaError, match=f"layer: found {layer!r}, expected -3 to 2"):
            Embedder(str(tiny_folder), layer=layer)
    with pytest.raises(SempaError, match="sentence 1: found int, expected a string"):
        embedder.encode(["a", 3])
    with pytest.raises(SempaError, match="sentence 1: is empty"):
        embedder.encode(["a", " \n"])
    kinds = (({"a", "b"}, "set"), (frozenset("a"), "frozenset"), (None, "NoneType"), (5, "int"))
    for wrong, name in (*kinds, (b"a", "bytes"), (object(), "object")):
        with pytest.raises(SempaError, match=f"sentences: found {name}, expected strings in a list"):
            embedder.encode(wrong)
    # In order, as a dictionary is.
    texts = dict.fromkeys(["b", "a"])
    np.testing.assert_array_equal(embedder.encode(texts.keys()), embedder.encode(["b", "a"]))


class Column:
    """What numpy and pandas hold strings in: of one dimension, iterating as its values."""

    ndim = 1

    def __init__(self, *values):
        self.values = values

    def __iter__(self):
        return iter(self.values)


class Table(Column):
    """A data frame: of two dimensions, iterating as its column names."""

    ndim = 2


@pytest.mark.parametrize("container", [tuple, iter, np.array, lambda values: Column(*values)])
def test_containers_of_one_dimension_are_their_strings(embedder, container):
    sentences = ["A dog runs.", "A cat sleeps."]
    assert np.array_equal(embedder.encode(container(sentences)), embedder.encode(sentences))


@pytest.mark.parametrize(
    ("container", "kind"),
    [
        (Table("text", "label"), "Table"),
        ({"text": ["A dog."]}, "dict"),
        (np.array([["A dog.", "A cat."]]), "ndarray"),
        (np.array("A dog."), "ndarray"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_iterates_as_something_else_is_refused(embedder, container, kind):
    with pytest.raises(SempaError, match=f"sentences: found {kind}, expected strings in a list"):
        embedder.encode(container)


def test_one_string_is_a_sentence_for_encode_and_no_sequence_for_embed(embedder):
    assert embedder.encode("Hello").shape == (32,)
    with pytest.raises(SempaError, match="sentences: found str, expected strings in a list"):
        embed(embedder.base, "Hello")


def test_a_prompt_as_long_as_the_models_context_can_be_read():
    check_length(Prompt([1] * 2048), 2048, "sentence 0")
    with pytest.raises(SempaError, match="sentence 0: has 2,049 tokens in its prompt"):
        check_length(Prompt([1] * 2049), 2048, "sentence 0")


def test_a_model_left_in_training_mode_is_read_without_dropout(tokenizer):
    config = GPT2Config(vocab_size=320, n_positions=128, n_embd=32, n_layer=2, n_head=4)
    base = BaseModel(GPT2LMHeadModel(config).eval(), tokenizer, "gpt2")
    expected = embed(base, SENTENCES)
    base.model.train()
    np.testing.assert_array_equal(embed(base, SENTENCES), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_embedder_computes_in_the_faster_dtype_unless_another_is_named(tiny_folder, monkeypatch, dtype):
    monkeypatch.setattr(models, "faster_dtype", lambda device: dtype)
    assert Embedder(tiny_folder, device="cpu").base.model.dtype == getattr(torch, dtype)
    assert Embedder(tiny_folder, dtype="bfloat16", device="cpu").base.model.dtype == torch.bfloat16


def test_a_lone_surrogate_is_refused(embedder):
    with pytest.raises(SempaError, match="text: is not UTF-8 text"):
        embedder.encode(["A dog.", "A \ud83d dog."])


def test_texts_are_tokenized_in_slices_and_kept_as_small_numbers(embedder, monkeypatch):
    """A tokenizer hands out kilobytes a text; what stays is a few bytes a token."""
    sentences = [f"A {'very ' * (i % 5)}small dog runs number {i}." for i in range(9000)]
    expected = embedder.encode(sentences[5000:5040])
    asked, make = [], make_prompts
    monkeypatch.setattr(embedding, "make_prompts", lambda *a: asked.append(len(a[-1])) or make(*a))
    tracemalloc.start()
    prompts = embedding.sentence_prompts(embedder.base, "prompteol", sentences)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(asked) <= 4096
    assert sum(asked) == len(prompts) == len(sentences)
    assert kept < 500 * len(sentences)
    assert peak < 10_000 * 4096 + kept
    monkeypatch.setattr(embedding, "_TOKENIZED_AT_ONCE", 7)
    np.testing.assert_allclose(embedder.encode(sentences[5000:5040]), expected, rtol=1e-5, atol=1e-6)


def test_threads_embed_and_generate_with_one_model_as_each_would_alone(tiny_folder):
    base = load_base(str(tiny_folder), "float32", "cpu")
    jobs = [partial(embed, base, SENTENCES, 2, readout=readout) for readout in READOUTS]
    jobs.append(lambda: [one.tokens for few in sample(base, ["A dog.", "A man runs."], 2, 12) for one in few])
    alone = [job() for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for job, found, expected in zip(jobs, pool.map(lambda job: job(), jobs), alone, strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=str(job))


def test_a_run_folder_gives_its_adapter(tiny_folder, tmp_path, monkeypatch):
    base = load_base(str(tiny_folder), "float32", "cpu")
    add_lora(base.model, 2, 4)
    for parameter in lora_parameters(base.model).values():
        parameter.data.fill_(0.1)
    save_adapter(base.model, tmp_path / "run" / "adapter", str(tiny_folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    ours, *others = (
        Embedder(str(tiny_folder), folder, dtype="float32", device="cpu").encode(SENTENCES)
        for folder in (tmp_path / "run" / "adapter", str(tmp_path / "run"), "~/run")
    )
    assert all(np.array_equal(ours, other) for other in others)
    # On the command line its base is found there, too.
    assert base_name("", tmp_path / "run") == str(tiny_folder)
    described = tmp_path / "run" / "adapter" / "adapter_config.json"
    for name, expected in ((None, "smollm2-135m"), (5, "5")):
        described.write_text(json.dumps(json.loads(described.read_text()) | {"base_model_name_or_path": name}))
        assert base_name("", tmp_path / "run") == expected
    with pytest.raises(
        SempaError, match=r"adapter '.*': holds no adapter_config.json, neither itself nor in its folder"
    ):
        Embedder(str(tiny_folder), tmp_path)


def test_an_embedder_merges_its_adapter_and_keeps_it_apart_when_asked(tiny_folder, embedder, tmp_path):
    base = load_base(str(tiny_folder), "float32", "cpu")
    add_lora(base.model, 2, 4)
    for parameter in lora_parameters(base.model).values():
        parameter.data.fill_(0.1)
    save_adapter(base.model, tmp_path, str(tiny_folder))
    merged, apart = (
        Embedder(str(tiny_folder), tmp_path, dtype="float32", device="cpu", merged=merged) for merged in (True, False)
    )
    assert describe(merged)["settings"]["adapter"] == describe(apart)["settings"]["adapter"] != ""
    assert not lora_layers(merged.base.model)
    np.testing.assert_allclose(merged.encode(SENTENCES), apart.encode(SENTENCES), rtol=1e-4, atol=1e-5)
    with adapter_disabled(apart.base.model):
        np.testing.assert_array_equal(apart.encode(SENTENCES), embedder.encode(SENTENCES))


def test_merging_an_adapter_leaves_every_readout_as_it_is(tiny_folder):
    base = load_base(str(tiny_folder), "float32", "cpu")
    add_lora(base.model, 2, 4)
    for i, parameter in enumerate(lora_parameters(base.model).values()):
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    expected = {readout: embed(base, SENTENCES, readout=readout) for readout in READOUTS}
    merge_adapter(base.model, torch.float32)
    for readout, vectors in expected.items():
        np.testing.assert_allclose(embed(base, SENTENCES, readout=readout), vectors, rtol=1e-4, atol=1e-5)


def test_progress_is_shown_only_when_asked_for(embedder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    embedder.encode(SENTENCES)
    assert capsys.readouterr().err == ""
    embedder.encode(SENTENCES, show_progress=True)
    assert "5/5" in capsys.readouterr().err


def test_the_package_exports_the_embedder_lazily():
    assert sempa.Embedder is Embedder
    with pytest.raises(AttributeError, match="nothing_here"):
        sempa.nothing_here  # noqa: B018


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real STS-B is not beside the project")
def test_the_embedded_model_scores_its_published_figure_on_a_slice_of_real_sts_b():
    with (SHARED / "sts" / "STSBenchmark" / "sts-dev.csv").open(encoding="utf-8") as stream:
        rows = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))[::10]
    embedder = Embedder("smollm2-135m", dtype="float32", device="cpu")
    first, second = (embedder.encode([r[i] for r in rows], normalize=True) for i in (5, 6))
    rho = spearmanr([float(r[4]) for r in rows], (first * second).sum(1)).statistic * 100
    # This tenth's own figure, in float32; the whole development set gives 73.84.
    assert rho == pytest.approx(77.16, abs=0.1)


def test_a_model_that_projects_behind_its_blocks_has_the_width_of_what_is_read(tokenizer, tmp_path):
    shape = {"hidden_size": 64, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    config = OPTConfig(vocab_size=len(tokenizer), num_attention_heads=4, do_layer_norm_before=False, **shape)
    OPTForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for layer, width in ((-1, 32), (1, 64)):
        embedder = Embedder(str(tmp_path), layer=layer, dtype="float32")
        assert embedder.encode(["A dog.", "A cat."]).shape == (2, width)
        assert embedder.encode([]).shape == (0, width)
        assert describe(embedder)["dimensions"] == width


@pytest.mark.parametrize("size", [0, -1, None])
def test_a_batch_size_that_is_no_count_is_named(embedder, size):
    with pytest.raises(SempaError, match=f"batch_size: found {size}, expected at least 1"):
        embedder.encode(["a"], batch_size=size)


def test_a_merged_model_is_read_as_it_was_trained_whatever_it_is_called(tiny_folder, tmp_path, monkeypatch):
    merged = tmp_path / "merged"
    shutil.copytree(tiny_folder, merged)
    (merged / "readout.json").write_text('{"readout": "attention-sum"}')
    monkeypatch.setenv("HOME", str(tmp_path))
    # A hub's cache, as a download leaves it.
    snapshot = tmp_path / "hub" / "models--me--encoder" / "snapshots" / "0"
    shutil.copytree(merged, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (str(merged), "~/merged", "me/encoder"):
        assert Embedder(name, dtype="float32", device="cpu").readout == "attention-sum"


@pytest.mark.parametrize("content", ["", "[]", "{}", '"prompteol"'])
def test_a_damaged_readout_is_one_sentence(tiny_folder, tmp_path, content):
    merged = tmp_path / "merged"
    shutil.copytree(tiny_folder, merged)
    (merged / "readout.json").write_text(content)
    with pytest.raises(SempaError, match=r"readout\.json: expected a JSON object with the key `readout`"):
        Embedder(str(merged), dtype="float32", device="cpu")


def test_a_readout_that_is_not_text_is_named(tmp_path):
    (tmp_path / "readout.json").write_text('{"readout": ["mean"]}')
    with pytest.raises(SempaError, match=r"readout: found \"\['mean'\]\""):
        parse_methods(adapter_readout(tmp_path))
