"""The examples, run as functions on files made on the spot."""

import io
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sempa import Embedder, SempaError
from sempa.model.lora import add_lora

pytest.importorskip("openai", reason="openai is not installed")
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
try:
    import retrieve_and_answer
    import semantic_search
    from semantic_search import LONGEST, Passage, encode_cached, read_passages, search, split_sentences
finally:
    sys.path.remove(str(EXAMPLES))


@pytest.fixture
def notes(tmp_path):
    """Two text files, one of them in a folder, and one that is no text."""
    folder = tmp_path / "notes"
    (folder / "more").mkdir(parents=True)
    (folder / "pets.txt").write_text("A man pets a dog. A girl\npets a cat!\n\nThe bird ignores the boy.\n")
    (folder / "more" / "horses.md").write_text("\n\nThe horse is petted by a woman.\n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def embedder(tiny_folder):
    return Embedder(str(tiny_folder), dtype="float32")


def test_sentences_are_found_with_their_files_and_lines(notes):
    pets, horses = notes / "pets.txt", notes / "more" / "horses.md"
    assert read_passages([notes]) == [
        Passage("The horse is petted by a woman.", horses, 3),
        Passage("A man pets a dog.", pets, 1),
        Passage("A girl pets a cat!", pets, 1),
        Passage("The bird ignores the boy.", pets, 4),
    ]
    assert [passage.file for passage in read_passages([horses])] == [horses]


def test_quotes_and_brackets_close_with_their_sentence():
    assert split_sentences('He said "no." She left (at last). Why?') == ['He said "no."', "She left (at last).", "Why?"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_word_is_lost_and_no_sentence_is_too_long(paragraph):
    sentences = split_sentences(paragraph)
    assert "".join(word for sentence in sentences for word in sentence.split()) == "".join(paragraph.split())
    assert all(1 <= len(sentence) <= LONGEST for sentence in sentences)


def test_what_has_no_blanks_is_cut_too():
    text = "A dog sits. " + "x" * 10_000
    assert split_sentences(text)[0] == "A dog sits."
    assert len(split_sentences(text)) == 1 + 10_000 // LONGEST + 1


def test_chinese_and_japanese_sentences_end_without_a_blank():
    assert split_sentences("他说：“你好。”然后走了。「はい！」") == ["他说：“你好。”", "然后走了。", "「はい！」"]


def test_a_byte_order_mark_is_no_text_and_a_form_feed_no_line(tmp_path):
    file = tmp_path / "pages.txt"
    file.write_bytes("\ufeffOne.\r\n\r\n\x0cTwo.\r\n".encode())
    assert read_passages([file]) == [Passage("One.", file, 1), Passage("Two.", file, 3)]


def test_lines_without_a_blank_one_between_are_one_paragraph_in_linear_time(tmp_path, monkeypatch):
    """In quadratic time it would take hours."""
    monkeypatch.setattr(semantic_search, "split_sentences", lambda paragraph: [paragraph] * bool(paragraph))
    file = tmp_path / "corpus.txt"
    file.write_text("\n" + f"{'word ' * 20}\n" * 300_000 + "\n\nlast\n")
    first, last = read_passages([file])
    assert (first.line, len(first.text), last) == (2, 300_000 * 101 - 1, Passage("last", file, 300_004))


def test_what_holds_no_text_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(SempaError, match="found no text"):
        read_passages([tmp_path])
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SempaError, match=r"bad\.txt: cannot be read"):
        read_passages([tmp_path])
    with pytest.raises(SempaError, match=r"none\.txt: cannot be read"):
        read_passages([tmp_path / "none.txt"])


def test_only_new_sentences_are_embedded(embedder, tmp_path, monkeypatch):
    asked = []
    real = embedder.encode
    monkeypatch.setattr(embedder, "encode", lambda texts, **o: asked.append(texts) or real(texts, **o))
    first = encode_cached(embedder, ["A dog.", "A cat.", "A dog."], tmp_path)
    second = encode_cached(embedder, ["A bird.", "A cat."], tmp_path)
    assert asked == [["A dog.", "A cat."], ["A bird."]]
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_allclose(second, real(["A bird.", "A cat."], normalize=True), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(second, axis=1), 1, rtol=1e-5)


def test_another_adapter_has_vectors_of_its_own(embedder, tmp_path):
    before = encode_cached(embedder, ["A dog."], tmp_path)
    add_lora(embedder.base.model, 2, 4)
    for name, parameter in embedder.base.model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.3)
    assert not np.allclose(encode_cached(embedder, ["A dog."], tmp_path), before, atol=1e-3)


def test_a_damaged_cache_is_filled_anew(embedder, tmp_path):
    expected = encode_cached(embedder, ["A dog."], tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    np.testing.assert_array_equal(encode_cached(embedder, ["A dog."], tmp_path), expected)


def test_a_sentence_finds_itself(embedder, tmp_path):
    texts = ["A man pets a dog.", "The bird ignores the boy.", "A girl pets a cat."]
    vectors = encode_cached(embedder, texts, tmp_path)
    (cosine, place), (other, _) = search(embedder, vectors, texts[1], 2)
    assert place == 1
    assert cosine == pytest.approx(1, abs=1e-4)
    assert other < cosine


def test_semantic_search_prints_the_nearest_sentence_of_each_query(notes, tiny_folder, tmp_path, capsys, monkeypatch):
    options = [str(notes), "--model", str(tiny_folder), "--dtype", "float32", "--cache", str(tmp_path / "cache")]
    assert semantic_search.main([*options, "--top", "1", "--query", "A man pets a dog."]) == 0
    from_option = capsys.readouterr().out
    assert from_option.splitlines()[0] == "A man pets a dog."
    assert from_option.splitlines()[1].endswith("pets.txt:1  A man pets a dog.")
    monkeypatch.setattr("sys.stdin", io.StringIO("A man pets a dog.\n\n"))
    assert semantic_search.main([*options, "--top", "1"]) == 0
    assert capsys.readouterr().out == from_option


def test_retrieve_and_answer_asks_one_server_with_what_it_found(notes, embedder, capsys, monkeypatch):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    from serving import serving

    asked = []
    real = retrieve_and_answer.make_prompt
    monkeypatch.setattr(retrieve_and_answer, "make_prompt", lambda *a: asked.append(real(*a)) or asked[-1])
    with serving(embedder) as address:
        options = ["--server", f"{address}/v1", "--top", "2", "--question", "The bird ignores the boy."]
        assert retrieve_and_answer.main([str(notes), *options]) == 0
    *_, first, _second = capsys.readouterr().out.splitlines()
    assert first.endswith("pets.txt:4  The bird ignores the boy.") and first.startswith("  1.000")
    (prompt,) = asked
    assert prompt.count("\n- ") == 2
    assert "- The bird ignores the boy." in prompt
    assert prompt.endswith("from these notes alone: The bird ignores the boy.")


def test_retrieve_and_answer_without_a_server_ends_with_a_sentence(notes, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert retrieve_and_answer.main([str(notes), "--server", address, "--question", "?"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("example", [semantic_search, retrieve_and_answer])
def test_bad_input_ends_with_a_sentence_and_help_with_none(example, tmp_path, capsys):
    question = ["--question", "?"] if example is retrieve_and_answer else []
    assert example.main([str(tmp_path / "none.txt"), *question]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(SystemExit) as ended:
        example.main(["--help"])
    assert ended.value.code == 0
    assert "paths" in capsys.readouterr().out
