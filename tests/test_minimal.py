"""The paper in one file computes what the package computes: log-probabilities, gradients, embeddings, correlation."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import load_script, make_llama, write_gguf
from scipy.stats import spearmanr

from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import encode_triplet
from sempa.embedding.embed import embed
from sempa.losses import dpo_loss
from sempa.model.base import load_base
from sempa.model.logprobs import sequence_logprobs
from sempa.model.lora import adapter_disabled, add_lora, lora_parameters

PATH = Path(__file__).resolve().parents[1] / "examples" / "minimal_sempa.py"
minimal = load_script(PATH)


@pytest.fixture
def both(tiny_folder):
    """The file's model and tokenizer, and the package's base, with one random adapter in both."""
    model, tokenizer = minimal.load(tiny_folder)
    minimal.add_lora(model)
    base = load_base(str(tiny_folder), "float32", "cpu")
    add_lora(base.model, minimal.RANK, minimal.ALPHA)
    generator = torch.Generator().manual_seed(1)
    theirs, ours = lora_parameters(base.model), adapter(model)
    assert theirs.keys() == ours.keys()
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            ours[name].copy_(parameter)
    return model, tokenizer, base


def adapter(model):
    """The file's adapter under the names that the package gives its own."""
    found = {name: p for name, p in model.named_parameters() if "lora_" in name}
    return {f"base_model.model.{name}.weight": parameter for name, parameter in found.items()}


def test_it_is_short_and_stands_on_torch_and_transformers_alone():
    text = PATH.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "transformers"}


def test_its_first_gradients_are_those_of_the_package(both, triplets):
    model, tokenizer, base = both
    # In float64 a processor's rounding hardly counts: only norms and rotary angles are computed in float32.
    model.double()
    base.model.double()
    preferences = [encode_triplet(base.tokenizer, triplet) for triplet in triplets]
    conversations = [
        minimal.encode(tokenizer, triplet.sentence, answer)
        for answers in ([t.chosen for t in triplets], [t.rejected for t in triplets])
        for triplet, answer in zip(triplets, answers, strict=True)
    ]
    policy, reference = (f(model, conversations) for f in (minimal.logprobs, minimal.reference_logprobs))
    loss, margin = minimal.dpo_loss(policy, reference)
    loss.backward()

    rows = pack_preferences(preferences, 400)
    assert len(rows) > 1
    expected_policy, expected_reference = torch.empty(2, 2, len(triplets), dtype=torch.float64)
    total = expected_margin = 0.0
    for row in rows:
        packed_policy = sequence_logprobs(base.model, row)
        with torch.no_grad(), adapter_disabled(base.model):
            packed_reference = sequence_logprobs(base.model, row)
        losses, chosen, rejected = dpo_loss(*packed_policy.T, *packed_reference.T, minimal.BETA)
        (losses.sum() / len(triplets)).backward()
        total += losses.sum().item() / len(triplets)
        expected_margin += (chosen - rejected).sum().item() / len(triplets)
        expected_policy[:, row.examples] = packed_policy.detach().T
        expected_reference[:, row.examples] = packed_reference.T

    close(policy.detach(), expected_policy.flatten(), 1e-6)
    close(reference, expected_reference.flatten(), 1e-6)
    assert (policy - reference).abs().min() > 0.1
    assert (loss.item(), margin.item()) == pytest.approx((total, expected_margin), rel=1e-5)
    ours, theirs = adapter(model), lora_parameters(base.model)
    for name, parameter in theirs.items():
        assert parameter.grad.abs().max() > 0, name
        close(ours[name].grad, parameter.grad, 1e-4)


def close(found, expected, tolerance):
    """Equal to a part of the largest number there is."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_its_embeddings_are_those_of_the_package(both):
    model, tokenizer, base = both
    sentences = ["A man pets a dog.", "Rain.", "The horse that the woman had petted ignores the girl."]
    close(minimal.embed(model, tokenizer, sentences), torch.from_numpy(embed(base, sentences)), 1e-5)


def test_its_correlation_of_ranks_is_scipys_ties_included():
    generator = torch.Generator().manual_seed(0)
    for size in (5, 40):
        x, y = torch.randn(size, generator=generator), torch.randint(4, (size,), generator=generator)
        y[:2] = torch.tensor([0, 3])
        assert minimal.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-6)
        assert minimal.spearman(x, x.exp()) == pytest.approx(1)


def test_its_sentences_are_triplets_and_graded_pairs_that_share_no_text():
    triplets = [line.split(" | ") for line in minimal.TRIPLETS.strip().splitlines()]
    pairs = [line.split(" | ") for line in minimal.PAIRS.strip().splitlines()]
    assert {len(parts) for parts in triplets + pairs} == {3}
    assert all(0 <= float(score) <= 5 for score, *_ in pairs)
    texts = [text for parts in triplets for text in parts] + [text for _, *both in pairs for text in both]
    assert len(set(texts)) == len(texts)
    # The protocol's clean-up leaves them as they are.
    assert all(re.fullmatch(r'[A-Z][^"?]*\.', text) and text == " ".join(text.split()) for text in texts)


def test_it_reads_the_weights_of_a_gguf_file(tmp_path):
    model = make_llama(tie_word_embeddings=False)
    write_gguf(tmp_path / "tiny.gguf", model)
    loaded, _ = minimal.load(tmp_path)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_it_runs_starts_at_log_two_and_learns_to_prefer_the_entailments(tiny_folder, monkeypatch, capsys):
    model, tokenizer = minimal.load(tiny_folder)
    monkeypatch.setattr(minimal, "load", lambda folder: (model, tokenizer))
    monkeypatch.setattr(sys, "argv", ["minimal_sempa.py", str(tiny_folder)])
    monkeypatch.setattr(minimal, "LEARNING_RATE", 1e-2)
    minimal.main()
    first, *steps, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"STS before: -?\d+\.\d", first) and re.fullmatch(r"STS after: -?\d+\.\d", last)
    found = [re.fullmatch(r"step (\d+)/\d+  loss (\d\.\d{3})  margin (-?\d+\.\d\d)", line).groups() for line in steps]
    numbers, losses, margins = zip(*(map(float, parts) for parts in found))
    assert list(numbers) == list(range(1, len(steps) + 1))
    # B is zero: the policy starts as the reference.
    assert losses[0] == pytest.approx(0.693) and margins[0] == pytest.approx(0)
    assert losses[-1] < 0.6 and margins[-1] > 0.2
    gains = []
    for line in minimal.TRIPLETS.strip().splitlines():
        sentence, entailment, contradiction = line.split(" | ")
        answers = [minimal.encode(tokenizer, sentence, answer) for answer in (entailment, contradiction)]
        gain = minimal.logprobs(model, answers) - minimal.reference_logprobs(model, answers)
        gains.append((gain[0] - gain[1]).item())
    assert sum(gain > 0 for gain in gains) > 0.8 * len(gains)
