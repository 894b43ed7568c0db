"""Input that can be read only once is read once, and a field that is asked for is found in every format."""

import gzip
import io
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from sempa import Embedder, SempaError
from sempa.cli import main
from sempa.data.sentences import read_sentences
from sempa.data.sts import read_sts
from sempa.data.triplets import read_triplets
from sempa.embedding.corpus import embed_corpus

LINES = [f"This is the sentence of number {i}." for i in range(3000)]
TEXT = "".join(line + "\n" for line in LINES).encode()


@pytest.fixture
def pipe():
    """The path of a pipe, as a shell's `<(…)` gives it, that holds the data."""
    opened, writers = [], []

    def make(data):
        reader, writer = os.pipe()
        opened.append(reader)
        writers.append(write_later(os.fdopen(writer, "wb"), data))
        return Path(f"/dev/fd/{reader}")

    yield make
    for descriptor in opened:
        os.close(descriptor)
    for thread in writers:
        thread.join()


def write_later(stream, data):
    def write():
        try:
            with stream:
                stream.write(data)
        except BrokenPipeError:
            # The reader had seen enough.
            pass

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def texts(path, field=None):
    return [sentence for _, sentence in read_sentences(path, field)]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_every_line_of_a_pipe_is_a_sentence(pipe, compress):
    assert texts(pipe(compress(TEXT))) == LINES


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_fields_of_a_pipe_are_found_by_its_content(pipe, compress):
    rows = "".join(json.dumps({"text": line, "review": line.upper()}) + "\n" for line in LINES)
    assert texts(pipe(compress(rows.encode()))) == LINES
    assert texts(pipe(compress(rows.encode())), "review") == [line.upper() for line in LINES]
    table = "id\ttext\n" + "".join(f"{i}\t{line}\n" for i, line in enumerate(LINES))
    assert texts(pipe(compress(table.encode())), "text") == LINES


def test_triplets_and_pairs_of_a_pipe_are_all_read(pipe):
    rows = [{"sent0": f"{line} A", "sent1": f"{line} B", "hard_neg": f"{line} C"} for line in LINES]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    table = "sent0,sent1,hard_neg\n" + "".join(",".join(row.values()) + "\n" for row in rows)
    for data in (lines, table):
        triplets, note = read_triplets(pipe(data.encode()))
        assert [(t.sentence, t.chosen, t.rejected) for t in triplets] == [tuple(row.values()) for row in rows]
        assert note == "3,000 triplets"
    scored = [{"sentence1": line, "sentence2": "x", "score": i} for i, line in enumerate(LINES)]
    pairs = "".join(json.dumps(pair) + "\n" for pair in scored)
    (task,) = read_sts(pipe(pairs.encode()))
    assert len(task.pairs) == 3000


def test_a_named_pipe_is_opened_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    thread = threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(TEXT))
    thread.start()
    assert texts(tmp_path / "fifo") == LINES
    thread.join()


def test_standard_input_is_read_once(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(TEXT))))
    assert texts(Path("-")) == LINES


def test_shards_need_input_that_can_be_read_again(pipe, tiny_folder, tmp_path):
    embedder = Embedder(str(tiny_folder), dtype="float32", device="cpu")
    os.mkfifo(tmp_path / "fifo")
    for path in (pipe(b"One.\n"), tmp_path / "fifo", Path("-")):
        with pytest.raises(SempaError, match=f"{path}: is read twice for shards; expected a file or a folder"):
            embed_corpus(embedder, path, tmp_path / "out")
    with pytest.raises(SempaError, match="no such file"):
        embed_corpus(embedder, tmp_path / "missing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pipe_is_embedded_as_the_file_would_be(pipe, tiny_folder, tmp_path):
    (tmp_path / "s.txt").write_bytes(b"".join(TEXT.splitlines(keepends=True)[:200]))
    for name, path in (("file", tmp_path / "s.txt"), ("pipe", pipe((tmp_path / "s.txt").read_bytes()))):
        command = ["embed", "--model", str(tiny_folder), "--dtype", "float32", str(path), str(tmp_path / f"{name}.npy")]
        assert main(command) == 0
    assert np.load(tmp_path / "pipe.npy", allow_pickle=False).shape == (200, 32)
    assert (tmp_path / "pipe.npy").read_bytes() == (tmp_path / "file.npy").read_bytes()


JSON_LINES = '{"text": "a b", "review": "c"}\n{"text": "d", "review": "e"}\n'
ONE_COLUMN = 'text\nA man, a dog.\n"One, and ""two""."\n'


@pytest.mark.parametrize(
    ("name", "content", "field", "expected"),
    [
        ("a.json", JSON_LINES, None, ["a b", "d"]),
        ("a.json", JSON_LINES, "review", ["c", "e"]),
        ("a.txt", JSON_LINES, None, ["a b", "d"]),
        ("a", JSON_LINES, "review", ["c", "e"]),
        ("a.tab", "id\ttext\n1\ta, b\n2\tc\n", None, ["a, b", "c"]),
        ("a.tab", "id\treview\n1\ta, b\n2\tc\n", "review", ["a, b", "c"]),
        ("a.dat", '"id","text"\n1,"a, b"\n', "text", ["a, b"]),
        ("a.dat", "id,review\n1,a b\n", "review", ["a b"]),
        # One column: commas and tabs are text, whatever the name; quotes are those of CSV.
        ("a.tsv", ONE_COLUMN, None, ["A man, a dog.", 'One, and "two".']),
        ("a.csv", ONE_COLUMN, None, ["A man, a dog.", 'One, and "two".']),
        ("a.txt", ONE_COLUMN, "text", ["A man, a dog.", 'One, and "two".']),
        ("a.csv", "text\na\tb\n", None, ["a\tb"]),
        # Sentences.
        ("a.txt", ONE_COLUMN, None, ["text", "A man, a dog.", '"One, and ""two""."']),
        ("a.txt", "Call, text, or write.\nAnd so on.\n", None, ["Call, text, or write.", "And so on."]),
        ("a.txt", "[Music] A band plays.\n{ sic }\n[1]\n", None, ["[Music] A band plays.", "{ sic }", "[1]"]),
        ("a.txt", "[1]\nOne.\n", None, ["[1]", "One."]),
        ("a.txt", "A man\tsings.\n", None, ["A man\tsings."]),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_content_decides_and_a_field_is_honoured(tmp_path, name, content, field, expected, compress):
    path = tmp_path / (name + ".gz" * compress)
    path.write_bytes(gzip.compress(content.encode()) if compress else content.encode())
    assert texts(path, field) == expected


@pytest.mark.parametrize(
    ("name", "content", "field", "message"),
    [
        ("a.txt", "A man sings.\n", "nosuch", "a.txt:1: found the columns 'A man sings.', expected nosuch"),
        ("a.json", JSON_LINES, "nosuch", "a.json:1: found the columns 'text', 'review', expected nosuch"),
        ("a.csv", "id,review\n1,a\n", None, "a.csv:1: found the columns 'id', 'review', expected text"),
        ("a.json", '[{"text": "a"}, {"text": "b"}]\n', None, "a.json:1: a JSON list, expected one object per line"),
        ("a.json", '[\n  {"text": "a"}\n]\n', None, "a.json:1: not valid JSON: Expecting value"),
        ("a.txt", '[{"review": "a"}, {"review": "b"}]\n', None, "a.txt:1: a JSON list, expected one object per line"),
        ("a.txt", ' [\n  {"text": "a"}\n]\n', None, "a.txt:1: not valid JSON: Expecting value"),
        ("a.json", '{\n  "text": "a"\n}\n', None, "expected one object per line"),
        ("a.txt", '{"text": "a"', None, "a.txt:1: not valid JSON: Expecting ',' delimiter at column 13"),
        ("a.jsonl", "plain\n", None, "a.jsonl:1: found the columns 'plain', expected text"),
        ("a.txt", "\nOne.\n", None, "a.txt:1: is empty, expected one sentence per line"),
    ],
)
def test_what_has_no_such_field_is_refused_with_its_line(tmp_path, name, content, field, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SempaError) as caught:
        texts(tmp_path / name, field)
    assert message in str(caught.value)


def test_a_json_array_of_triplets_is_told_from_a_table(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([{"sent0": "a", "sent1": "b", "hard_neg": "c"}]))
    with pytest.raises(SempaError, match="a JSON list, expected one object per line"):
        read_triplets(tmp_path / "t.json")


def test_a_sentence_that_is_too_long_is_located_before_any_is_embedded(tiny_folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "s.txt").write_text("".join(f"{line}\n" for line in [*LINES[:60], "x" * 5000, *LINES[60:80]]))
    monkeypatch.setattr(Embedder, "encode", lambda *_, **__: pytest.fail("embedded before all was read"))
    model = ["embed", "--model", str(tiny_folder), "--dtype", "float32", str(tmp_path / "s.txt")]
    for more in ([str(tmp_path / "v.npy")], [str(tmp_path / "out"), "--shard-rows", "5"]):
        assert main([*model, *more]) == 2
        assert "s.txt:61: has 5,0" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["s.txt"]


def test_standard_input_is_read_once_and_says_when_it_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(TEXT))))
    assert texts(Path("-")) == LINES
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SempaError, match="-: standard input is closed"):
        texts(Path("-"))


def test_an_object_with_blanks_before_its_first_key_is_json(tmp_path):
    (tmp_path / "a.in").write_text('{ "text": "A man." }\n')
    assert texts(tmp_path / "a.in", None) == ["A man."]


def test_a_column_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_text(f"id,text\n{'x' * 200_000},A man.\n")
    assert texts(tmp_path / "a.csv", "text") == ["A man."]
