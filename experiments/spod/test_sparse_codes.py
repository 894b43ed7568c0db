"""Sparse sentence embeddings against dense arithmetic over the whole vocabulary, in values, cosines and bytes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from embed_sparse import main
from scipy.sparse import csr_matrix, load_npz
from sparse_codes import encode_sparse, sparse_cosines, sparse_embeddings, stored_bytes, to_csr
from test_sparse import dense, directions, problem

from sempa import SempaError
from sempa.embedding.embed import embed
from sempa.io.streams import exit_code
from sempa.kernels import sparse_code, token_directions
from sempa.model.base import load_base


def test_csr_cosines_are_the_dense_ones_and_bytes_are_those_of_the_arrays():
    embedding, head = problem(9, 6, 50, torch.float32)
    code = sparse_code(embedding, token_directions(head), 7)
    codes = to_csr(code.values, code.indices, 50)
    chosen = dense(embedding, head, 7)[0]
    assert codes.dtype == np.float32
    assert codes.has_sorted_indices
    np.testing.assert_allclose(codes.toarray(), chosen.numpy(), rtol=1e-5, atol=1e-5)
    expected = F.cosine_similarity(chosen[:-1].double(), chosen[1:].double())
    np.testing.assert_allclose(sparse_cosines(codes[:-1], codes[1:]), expected, rtol=1e-5, atol=1e-6)
    wide = torch.tensor(codes.toarray(), dtype=torch.float64)
    exact = F.cosine_similarity(wide[:-1], wide[1:])
    np.testing.assert_allclose(sparse_cosines(codes[:-1], codes[1:]), exact, rtol=1e-14, atol=1e-15)
    assert stored_bytes(codes) == 8 * 9 * 7 + 4 * 10


def test_values_of_zero_are_not_stored_and_an_empty_row_has_cosine_zero():
    codes = to_csr(torch.tensor([[0.5, 0.0], [0.0, 0.0]]), torch.tensor([[3, 1], [0, 2]]), 4)
    assert codes.nnz == 1
    assert sparse_cosines(codes, codes).tolist() == [1, 0]
    assert to_csr(torch.empty(0, 2), torch.empty(0, 2, dtype=torch.int64), 4).shape == (0, 4)


def test_the_least_squares_scale_makes_the_error_orthogonal_to_the_code():
    vectors, head = problem(8, 12, 60)
    codes = sparse_embeddings(vectors, head, 9)
    decoded = codes @ directions(head).numpy()
    error = vectors.numpy() - decoded
    np.testing.assert_allclose((error * decoded).sum(1), 0, atol=1e-5)
    # With as many tokens as there are, nothing but the rectifier stands between code and embedding.
    assert np.linalg.norm(error, axis=1).mean() < np.linalg.norm(vectors.numpy(), axis=1).mean()


def test_a_vector_that_no_token_points_along_has_an_empty_code():
    _, head = problem(8, 12, 60)
    assert sparse_embeddings(torch.zeros(1, 12), head, 9).nnz == 0


def test_sentences_become_codes_of_their_own_embeddings(tiny_folder):
    base = load_base(str(tiny_folder), "float32", "cpu")
    sentences = ["A man pets a dog.", "A woman ignores the cat.", "The horse is petted by a girl."]
    codes = encode_sparse(base, sentences, 16, batch_size=2)
    assert isinstance(codes, csr_matrix)
    assert codes.shape == (3, base.model.config.vocab_size)
    assert (np.diff(codes.indptr) == 16).all()
    vectors = torch.from_numpy(embed(base, sentences))
    head = base.model.get_output_embeddings().weight
    chosen = dense(vectors, head, 16)[0].numpy()
    stored = codes.toarray()
    scale = (stored * chosen).sum(1, keepdims=True) / (chosen**2).sum(1, keepdims=True)
    np.testing.assert_allclose(stored, scale * chosen, rtol=1e-4, atol=1e-6)
    assert encode_sparse(base, [], 16).shape == (0, base.model.config.vocab_size)
    for k in (0, 321):
        with pytest.raises(SempaError, match=f"k: found {k}, expected 1 to the vocabulary's 320"):
            encode_sparse(base, sentences, k)


def test_codes_that_do_not_fit_are_refused():
    values, indices = torch.ones(2, 2), torch.tensor([[0, 1], [2, 4]])
    with pytest.raises(ValueError, match=r"indices in \[0, 4\), found 0 to 4"):
        to_csr(values, indices, 4)
    with pytest.raises(ValueError, match=r"values and indices \[n, k\], found \(2, 1\) \(2, 2\)"):
        to_csr(values[:, :1], indices, 9)


def test_the_script_writes_the_codes_of_a_files_sentences(tiny_folder, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("A man runs.\nA dog sleeps.\n")
    model = ["--model", str(tiny_folder), "--dtype", "float32", "--device", "cpu", "--tokens", "5"]
    main([*model, str(tmp_path / "in.txt"), str(tmp_path / "out.npz")])
    base = load_base(str(tiny_folder), "float32", "cpu")
    expected = encode_sparse(base, ["A man runs.", "A dog sleeps."], 5).toarray()
    np.testing.assert_allclose(load_npz(tmp_path / "out.npz").toarray(), expected, rtol=1e-5)
    assert "2 sentences of 5 tokens" in capsys.readouterr().out
    for name, tokens, message in (
        ("out.npy", "5", "expected a name that ends in .npz"),
        ("out.npz", "321", "k: found 321, expected 1 to the vocabulary's 320"),
    ):
        arguments = [*model, "--tokens", tokens, str(tmp_path / "in.txt"), str(tmp_path / name)]
        assert exit_code("program", lambda arguments=arguments: main(arguments)) == 2
        assert message in capsys.readouterr().err


def test_the_script_reads_a_field_and_does_not_write_over_its_input(tiny_folder, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "A dog.", "other": "A man runs."}\n')
    (tmp_path / "in.npz").write_text("A man runs.\n")
    model = ["--model", str(tiny_folder), "--dtype", "float32", "--device", "cpu", "--tokens", "5"]
    main([*model, "--field", "other", str(tmp_path / "in.jsonl"), str(tmp_path / "out.npz")])
    base = load_base(str(tiny_folder), "float32", "cpu")
    expected = encode_sparse(base, ["A man runs."], 5).toarray()
    np.testing.assert_allclose(load_npz(tmp_path / "out.npz").toarray(), expected, rtol=1e-5)
    assert exit_code("program", lambda: main([*model, str(tmp_path / "in.npz"), str(tmp_path / "in.npz")])) == 2
    assert "is the input itself, which would be lost" in capsys.readouterr().err
