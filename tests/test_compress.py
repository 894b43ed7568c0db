"""Smaller vectors: the rotation against NumPy's SVD, bits against sentence-transformers, what an empty text is."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from sempa import Embedder, SempaError
from sempa.embedding.compress import cosines, middle_directions, quantise

SENTENCES = ["A man runs.", "Two small dogs are chasing a red ball", "Hi", "Who is it?"]
VECTORS = np.random.default_rng(0).standard_normal((50, 24)).astype(np.float32) * np.geomspace(0.01, 100, 24)
VECTORS = VECTORS.astype(np.float32)


@pytest.fixture(scope="module")
def embedder(tiny_folder):
    return Embedder(str(tiny_folder), dtype="float32", device="cpu")


def test_of_directions_equally_near_the_middle_the_lower_is_first():
    found = middle_directions(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])))
    assert found.tolist() == np.eye(4)[:, [2, 1, 3, 0]].tolist()


@pytest.mark.parametrize("width", [24, 25])
def test_the_directions_are_the_heads_right_singular_vectors_from_the_middle_outwards(width, monkeypatch):
    monkeypatch.setattr("sempa.embedding.compress._ROWS", 64)
    head = np.random.default_rng(1).standard_normal((200, width)) * np.geomspace(1, 9, width)
    directions = middle_directions(torch.from_numpy(head))
    assert directions.dtype == np.float32
    np.testing.assert_allclose(directions.T @ directions, np.eye(width), atol=1e-5)
    # Falling singular values.
    _, _, rows = np.linalg.svd(head, full_matrices=False)
    ranks = np.abs(rows @ directions).argmax(0)
    np.testing.assert_allclose(np.abs(rows @ directions).max(0), 1, atol=1e-5)
    distances = np.abs(ranks - (width - 1) / 2)
    assert sorted(ranks) == list(range(width))
    assert (np.diff(distances) >= 0).all()
    # Another order of the vocabulary gives other rounding, and must not turn a direction round.
    np.testing.assert_allclose(middle_directions(torch.from_numpy(head[::-1].copy())), directions, atol=1e-5)


def test_dim_keeps_the_first_numbers_of_one_rotation(embedder):
    whole, turned = embedder.encode(SENTENCES), embedder.encode(SENTENCES, dim=32)
    directions = middle_directions(embedder.base.model.get_output_embeddings().weight)
    np.testing.assert_allclose(turned, whole @ directions, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Embedder.similarity(turned, turned), Embedder.similarity(whole, whole), atol=1e-5)
    short = embedder.encode(SENTENCES, dim=5)
    assert short.shape == (4, 5)
    np.testing.assert_allclose(short, turned[:, :5], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embedder.encode(SENTENCES[0], dim=5, normalize=True)), 1, rtol=1e-5)


def test_a_single_vector_is_shortened_like_one_of_many(embedder):
    vectors = embedder.encode(SENTENCES)
    np.testing.assert_allclose(embedder.shorten(vectors[0], 4), embedder.shorten(vectors, 4)[0], rtol=1e-4, atol=1e-6)


def test_int8_is_the_float_to_half_a_step_and_its_cosines_too():
    found = quantise(VECTORS, "int8")
    assert found.dtype == np.int8
    steps = np.abs(VECTORS).max(1, keepdims=True) / 127
    assert (np.abs(found * steps - VECTORS) <= steps * 0.5001).all()
    assert (np.abs(found).max(1) == 127).all()
    np.testing.assert_allclose(cosines(found, found), 1 - cdist(VECTORS, VECTORS, "cosine"), atol=0.01)
    assert cosines(found, found).dtype == np.float32
    assert not quantise(np.zeros((1, 3), np.float32), "int8").any()


def test_binary_is_sentence_transformers_ubinary_and_its_cosine_the_hamming_distance():
    quantization = pytest.importorskip("sentence_transformers.quantization", reason="is not installed")
    found = quantise(VECTORS, "binary")
    np.testing.assert_array_equal(found, quantization.quantize_embeddings(VECTORS, "ubinary"))
    bits = VECTORS > 0
    np.testing.assert_allclose(cosines(found, found), 1 - 2 * cdist(bits, bits, "hamming"), atol=1e-6)


def test_similarity_is_the_cosine_of_vectors_or_lists_of_them():
    first, second = VECTORS[:3], VECTORS[3:8]
    expected = 1 - cdist(first, second, "cosine")
    np.testing.assert_allclose(Embedder.similarity(first, second), expected, atol=1e-5)
    np.testing.assert_allclose(Embedder.similarity(first[0], second), expected[:1], atol=1e-5)
    assert Embedder.similarity(np.zeros(24, np.float32), second).tolist() == [[0] * 5]


def test_encode_gives_each_precision_of_the_same_vectors(embedder):
    whole = embedder.encode(SENTENCES, dim=16)
    for precision in ("int8", "binary"):
        found = embedder.encode(SENTENCES, dim=16, precision=precision)
        np.testing.assert_array_equal(found, quantise(whole, precision))
        assert embedder.encode(SENTENCES[0], dim=16, precision=precision).ndim == 1
    np.testing.assert_array_equal(embedder.encode_query(SENTENCES), embedder.encode(SENTENCES))
    np.testing.assert_array_equal(embedder.encode_document(SENTENCES, dim=16), whole)


def test_an_empty_text_is_the_zero_vector_where_that_is_asked_for(embedder):
    texts = [SENTENCES[0], " \n", *SENTENCES[1:], ""]
    for options in ({}, {"normalize": True}, {"dim": 8}, {"precision": "int8"}):
        found = embedder.encode(texts, on_empty="zero", **options)
        assert not found[[1, -1]].any()
        np.testing.assert_allclose(found[[0, 2, 3, 4]], embedder.encode(SENTENCES, **options), rtol=1e-4, atol=1e-5)
    assert not embedder.encode("", on_empty="zero").any()
    with pytest.raises(SempaError, match="on_empty: a binary vector cannot be zero"):
        embedder.encode(["a", ""], on_empty="zero", precision="binary")
    assert len(embedder.encode(["a"], on_empty="zero", precision="binary")) == 1
    assert embedder.encode([], on_empty="zero").shape == (0, 32)
    with pytest.raises(SempaError, match="sentence 1: is empty"):
        embedder.encode(texts)
    with pytest.raises(SempaError, match=r"sentence 1 \('very very .*…\): has .* tokens"):
        embedder.encode(["", "very " * 5000], on_empty="zero")
    with pytest.raises(SempaError, match="sentences: found dict"):
        embedder.encode({"a": 1}, on_empty="zero")


@pytest.mark.parametrize("dim", [0, 33])
def test_vectors_are_not_shortened_to_more_numbers_than_they_have(embedder, dim):
    with pytest.raises(SempaError, match=f"dim: found {dim}, expected a whole number from 1 to 32"):
        embedder.shorten(embedder.encode(SENTENCES), dim)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dim": 0}, "dim: found 0, expected a whole number from 1 to 32"),
        ({"dim": 33}, "dim: found 33"),
        ({"dim": 1.5}, "dim: found 1.5"),
        ({"precision": "int4"}, "precision: found 'int4', expected one of float32, int8, binary"),
        ({"dim": 12, "precision": "binary"}, "binary packs 8 numbers into a byte, but the vectors have 12"),
        ({"on_empty": "skip"}, "on_empty: found 'skip', expected error or zero"),
    ],
)
def test_wrong_options_are_named(embedder, options, message):
    with pytest.raises(SempaError, match=message):
        embedder.encode(SENTENCES, **options)
