"""Large corpora: streamed, resumed to the same bytes after any kill, never under other settings."""

import contextlib
import gzip
import io
import itertools
import json
import os
import shutil
import signal
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from sempa import Embedder, SempaError
from sempa.cli import main
from sempa.data.sentences import read_sentences
from sempa.embedding import corpus
from sempa.embedding.corpus import (
    MANIFEST_FILE,
    check_lengths,
    embed_corpus,
    read_shards,
)
from sempa.io.lock import folder_lock
from sempa.model.adapter_files import save_adapter
from sempa.model.lora import add_lora, lora_parameters

SENTENCES = [f"{'Very ' * (i % 4)}small dog number {i}." for i in range(23)]


@pytest.fixture(scope="module")
def embedder(tiny_folder):
    return Embedder(str(tiny_folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def other(tiny_folder, tmp_path_factory):
    """An adapter whose B is not zero."""
    folder = tmp_path_factory.mktemp("adapter")
    model = Embedder(str(tiny_folder), dtype="float32", device="cpu").base.model
    add_lora(model, 2, 4)
    for parameter in lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(model, folder, str(tiny_folder))
    return folder


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def stacked(folder):
    return np.concatenate([vectors for _, vectors in read_shards(folder)])


@pytest.mark.parametrize("shard_format", ["safetensors", "npy"])
def test_shards_hold_every_row_once_in_order_with_ranges_and_settings(embedder, source, tmp_path, shard_format):
    manifest = embed_corpus(embedder, source, tmp_path / "out", shard_rows=5, shard_format=shard_format)
    assert [(s["first_row"], s["rows"]) for s in manifest["shards"]] == [(0, 5), (5, 5), (10, 5), (15, 5), (20, 3)]
    assert sorted(content(tmp_path / "out")) == [MANIFEST_FILE, *(f"shard-00000{i}.{shard_format}" for i in range(5))]
    assert manifest["settings"]["input"]["rows"] == 23
    assert {"adapter", "weights", "readout", "layer", "dtype", "device", "normalize"} <= manifest["settings"].keys()
    assert [first for first, _ in read_shards(tmp_path / "out")] == [0, 5, 10, 15, 20]
    assert stacked(tmp_path / "out").dtype == np.float32
    for begin in range(0, 23, 5):
        rows = slice(begin, begin + 5)
        assert np.array_equal(stacked(tmp_path / "out")[rows], embedder.encode(SENTENCES[rows]))
    np.testing.assert_allclose(stacked(tmp_path / "out"), embedder.encode(SENTENCES), rtol=1e-4, atol=1e-5)


@pytest.fixture
def counted(monkeypatch):
    """Vectors that cost nothing, and the sentences that were embedded."""
    seen = []

    def encode(self, texts, *arguments, **options):
        seen.extend(texts)
        return np.array([[len(text), sum(text.encode()), *range(30)] for text in texts], dtype=np.float32)

    monkeypatch.setattr(Embedder, "encode", encode)
    return seen


def test_a_process_killed_anywhere_resumes_to_the_same_bytes_and_embeds_no_finished_row_again(
    embedder, source, tmp_path, counted
):
    """SIGKILL before every fsync and rename in turn, in a forked child each time."""
    embed_corpus(embedder, source, tmp_path / "whole", shard_rows=5)
    kills = 0
    for fatal in range(1, 60):
        folder = tmp_path / f"killed-{fatal}"
        pid = os.fork()
        if pid == 0:
            try:
                die_at(fatal)
                embed_corpus(embedder, source, folder, shard_rows=5)
            finally:
                os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            break
        kills += 1
        finished = len(list(folder.glob("shard-*")))
        counted.clear()
        embed_corpus(embedder, source, folder, shard_rows=5)
        assert counted == SENTENCES[5 * finished :]
        assert content(folder) == content(tmp_path / "whole")
    assert kills > 15


def die_at(fatal):
    """Kill this process at the disk operation of that number."""
    calls = []

    def fatally(real):
        def operation(*arguments, **options):
            calls.append(1)
            if len(calls) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return operation

    # Before Python 3.11 a path keeps functions of `os` of its own.
    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "mkdir")):
        setattr(owner, name, fatally(getattr(owner, name)))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"batch_size": 3}, "batch_size"),
        ({"normalize": True}, "normalize"),
        ({"shard_rows": 6}, "shard_rows"),
        ({"shard_format": "npy"}, "shard_format"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_is_touched(embedder, source, tmp_path, counted, change, key):
    embed_corpus(embedder, source, tmp_path / "out", shard_rows=5)
    before = content(tmp_path / "out")
    with pytest.raises(SempaError, match=rf"was begun with {key} = "):
        embed_corpus(embedder, source, tmp_path / "out", **{"shard_rows": 5, **change})
    assert content(tmp_path / "out") == before


def test_another_model_adapter_layer_readout_or_input_is_refused(
    embedder, other, source, tiny_folder, tmp_path, counted
):
    embed_corpus(embedder, source, tmp_path / "out", shard_rows=5)
    options = {"dtype": "float32", "device": "cpu"}
    for changed, message in (
        (Embedder(str(tiny_folder), other, **options), "adapter = '', now '[0-9a-f]+'; give"),
        (Embedder(str(tiny_folder), layer=1, **options), "layer = -1, now 1; give"),
        (Embedder(str(tiny_folder), readout="mean", **options), "readout = 'prompteol', now 'mean'; give"),
        (Embedder(str(tiny_folder), dtype="bfloat16", device="cpu"), "(weights|dtype) = "),
    ):
        with pytest.raises(SempaError, match=f"was begun with {message}"):
            embed_corpus(changed, source, tmp_path / "out", shard_rows=5)
    source.write_text(source.read_text().replace("number 9", "number x"))
    with pytest.raises(SempaError, match="was begun with other sentences; give"):
        embed_corpus(embedder, source, tmp_path / "out", shard_rows=5)


def test_a_model_is_known_by_its_weights_wherever_it_lies(embedder, source, tiny_folder, tmp_path, counted):
    embed_corpus(embedder, source, tmp_path / "out", shard_rows=5)
    before = content(tmp_path / "out")
    moved = Embedder(shutil.copytree(tiny_folder, tmp_path / "moved"), dtype="float32", device="cpu")
    embed_corpus(moved, source, tmp_path / "out", shard_rows=5)
    assert content(tmp_path / "out") == before
    moved.base.model.model.norm.weight.data[0] += 1
    with pytest.raises(SempaError, match=r"was begun with weights = "):
        embed_corpus(moved, source, tmp_path / "out", shard_rows=5)


def test_sentences_are_embedded_as_the_settings_say(embedder, source, tmp_path, monkeypatch):
    asked, real = [], Embedder.encode

    def encode(self, texts, batch_size=64, **options):
        asked.append(batch_size)
        return real(self, texts, batch_size, **options)

    monkeypatch.setattr(Embedder, "encode", encode)
    embed_corpus(embedder, source, tmp_path / "out", batch_size=3, normalize=True)
    assert asked == [3]
    np.testing.assert_allclose(np.linalg.norm(stacked(tmp_path / "out"), axis=1), 1, rtol=1e-5)


def test_a_format_that_does_not_exist_is_refused_before_anything_is_embedded(embedder, source, tmp_path, counted):
    with pytest.raises(SempaError, match=r"shard\.npz: expected a name that ends in \.npy"):
        embed_corpus(embedder, source, tmp_path / "out", shard_format="npz")
    assert not counted
    assert not (tmp_path / "out").exists()


def test_the_same_characters_cut_elsewhere_are_other_sentences(embedder, source, tmp_path, counted):
    source.write_text("ab\nc\n")
    embed_corpus(embedder, source, tmp_path / "out")
    source.write_text("a\nbc\n")
    with pytest.raises(SempaError, match="was begun with other sentences"):
        embed_corpus(embedder, source, tmp_path / "out")


def test_a_sentence_that_a_prompt_holds_twice_is_located_when_it_is_too_long(tiny_folder, tmp_path):
    embedder = Embedder(str(tiny_folder), readout="echo", dtype="float32", device="cpu")
    # 1,500 and 1,020 bytes, none of which the tokenizer merges: the shorter is too long with the words around it.
    for count in (500, 340):
        long = "".join(chr(0x4E00 + i) for i in range(count))
        with pytest.raises(SempaError, match=r"in\.txt:7: has "):
            list(check_lengths(embedder, tmp_path / "in.txt", [(7, long)]))


def test_the_same_sentences_from_another_file_are_the_same_input(embedder, source, tmp_path, counted):
    embed_corpus(embedder, source, tmp_path / "out", shard_rows=5)
    before = content(tmp_path / "out")
    zipped = tmp_path / "corpus.jsonl.gz"
    zipped.write_bytes(gzip.compress("".join(json.dumps({"text": s}) + "\n" for s in SENTENCES).encode()))
    embed_corpus(embedder, zipped, tmp_path / "out", shard_rows=5)
    assert content(tmp_path / "out") == before


def test_a_corpus_that_another_process_embeds_is_left_alone(embedder, source, tmp_path):
    """Its half-written shard looks like a leftover."""
    embed_corpus(embedder, source, tmp_path / "out", shard_rows=10)
    half_written = tmp_path / "out" / f".shard-000002.safetensors.{'0' * 16}.tmp"
    half_written.touch()
    with folder_lock(tmp_path / "out"), pytest.raises(SempaError, match=r"out: process .* is writing here"):
        embed_corpus(embedder, source, tmp_path / "out", shard_rows=10)
    assert half_written.exists()
    embed_corpus(embedder, source, tmp_path / "out", shard_rows=10)
    assert not half_written.exists()


def test_two_that_begin_a_corpus_together_do_not_mix(embedder, source, tmp_path, monkeypatch):
    """The second saw no manifest before the first wrote its own, with other settings."""
    real = corpus.write_json

    def first_comes_another(path, manifest):
        monkeypatch.setattr(corpus, "write_json", real)
        with contextlib.suppress(SempaError):
            embed_corpus(embedder, source, tmp_path / "out", shard_rows=10, normalize=True)
        real(path, manifest)

    monkeypatch.setattr(corpus, "write_json", first_comes_another)
    embed_corpus(embedder, source, tmp_path / "out", shard_rows=10)
    assert (np.linalg.norm(stacked(tmp_path / "out"), axis=1) > 1.01).all()


def test_a_missing_shard_is_made_again_alone(embedder, source, tmp_path, counted):
    embed_corpus(embedder, source, tmp_path / "out", shard_rows=5)
    before = content(tmp_path / "out")
    path = tmp_path / "out" / "shard-000001.safetensors"
    path.unlink()
    with pytest.raises(SempaError, match=r"^[^:]*shard-000001\.safetensors: cannot be read: No such file"):
        stacked(tmp_path / "out")
    counted.clear()
    embed_corpus(embedder, source, tmp_path / "out", shard_rows=5)
    assert counted == SENTENCES[5:10]
    assert content(tmp_path / "out") == before


def test_memory_does_not_grow_with_the_corpus(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(Embedder, "encode", lambda self, texts, *a, **k: np.ones((len(texts), 64), np.float32))

    def peak(rows):
        path = tmp_path / f"{rows}.txt"
        with path.open("w") as stream:
            stream.writelines(f"This is the sentence of number {i}.\n" for i in range(rows))
        tracemalloc.start()
        manifest = embed_corpus(embedder, path, tmp_path / f"{rows}", shard_rows=1000)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(shard["rows"] for shard in manifest["shards"]) == rows
        return most

    small, large = peak(3000), peak(20_000)
    assert large < 1.2 * small


def test_an_unfinished_or_a_foreign_folder_is_not_taken_for_a_corpus(embedder, source, tmp_path, monkeypatch):
    with pytest.raises(SempaError, match=r"manifest\.json: cannot be read"):
        stacked(tmp_path)
    with pytest.raises(SempaError, match=r"exists without a manifest\.json"):
        embed_corpus(embedder, source, tmp_path)
    with pytest.raises(SempaError, match="is not a folder, so it cannot be the output"):
        embed_corpus(embedder, source, source)
    calls, real = [], Embedder.encode

    def stopped(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(Embedder, "encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(embedder, source, tmp_path / "out", shard_rows=5)
    with pytest.raises(SempaError, match=r"shard-000002\.safetensors: cannot be read"):
        stacked(tmp_path / "out")
    manifest = tmp_path / "out" / MANIFEST_FILE
    manifest.write_text("")
    with pytest.raises(SempaError, match=r"manifest\.json: cannot be read"):
        embed_corpus(embedder, source, tmp_path / "out", shard_rows=5)


def test_sentences_come_from_text_and_json_lines_plain_or_gzip(tmp_path):
    texts = ["A man.", "Zwei Hunde, “wirklich”", "  { not JSON", "tab\tbed", "a blank "]
    plain = tmp_path / "a.txt"
    plain.write_bytes("\ufeff".encode() + "\r\n".join(texts).encode())
    assert [text for _, text in read_sentences(plain)] == texts
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"id": i, "sentence": t}) + "\n" for i, t in enumerate([*texts, "two\nlines"])))
    assert [text for _, text in read_sentences(lines, "sentence")] == [*texts, "two\nlines"]
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(lines.read_bytes()))
    assert [text for _, text in read_sentences(zipped, "sentence")] == [*texts, "two\nlines"]


def test_empty_sentences_that_are_left_out_are_counted_and_the_first_is_located(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n \n")
    with pytest.warns(UserWarning, match=r"a\.txt: 2 empty sentences left out, first in line 2"):
        assert list(read_sentences(tmp_path / "a.txt", skip_empty=True)) == [(1, "one"), (3, "two")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"one\n\ntwo", "a.txt:2: is empty"),
        ("a.txt", b"one\n \t\n", "a.txt:2: is empty"),
        ("a.txt", b"", "a.txt: the file is empty"),
        ("a.txt", b"one\ncaf\xe9\n", "a.txt:2: not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "a.jsonl:2: a JSON list"),
        ("a.jsonl", b'{"text": "a"}\n{"texts": "b"}', "a.jsonl:2: no field text"),
        ("a.jsonl", b'{"text": [3]}', "a.jsonl:1: text is a list, expected text"),
        ("a.jsonl", b'{"text": " "}', "a.jsonl:1: is empty"),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl:1: "),
        ("a.jsonl", b'{"half', "a.jsonl:1: not valid JSON"),
    ],
)
def test_bad_input_is_located_before_anything_is_embedded(embedder, tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SempaError) as caught:
        embed_corpus(embedder, path, tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_vectors_may_come_from_elsewhere_in_pieces_but_not_too_few(embedder, source, tmp_path):
    def pieces(chunks):
        for chunk in chunks:
            vectors = embedder.encode(chunk)
            yield from (vectors[:2], vectors[2:])

    options = {"shard_rows": 5, "shard_format": "npy"}
    embed_corpus(embedder, source, tmp_path / "pieces", encode=pieces, **options)
    embed_corpus(embedder, source, tmp_path / "whole", **options)
    assert content(tmp_path / "pieces") == content(tmp_path / "whole")
    with pytest.raises(SempaError, match="changed while it was being embedded"):
        embed_corpus(
            embedder, source, tmp_path / "few", encode=lambda chunks: itertools.islice(pieces(chunks), 3), **options
        )

    def long(chunks):
        yield np.concatenate([embedder.encode(chunk) for chunk in chunks])

    with pytest.raises(ValueError, match="a piece with vectors of two shards"):
        embed_corpus(embedder, source, tmp_path / "long", encode=long, **options)
    assert not list((tmp_path / "long").glob("shard-*"))


def test_the_command_streams_resumes_and_tells(tiny_folder, source, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    command = ["embed", "--model", str(tiny_folder), "--dtype", "float32", str(source), str(out), "--shard-rows", "10"]
    real = Embedder.encode
    calls = []

    def stopped(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(Embedder, "encode", stopped)
    assert main(command) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert main(command) == 0
    assert "23 embeddings of 32 dimensions in 3 shards" in capsys.readouterr().out
    assert len(calls) == 4
    assert main([*command, "--normalize"]) == 2
    assert "was begun with normalize = False, now True" in capsys.readouterr().err
    assert main([*command[:5], "-", *command[6:]]) == 2
    assert main([*command[:-1], "0"]) == 2
    embedder = Embedder(str(tiny_folder), dtype="float32")
    embed_corpus(embedder, source, tmp_path / "whole", shard_rows=10)
    assert content(out) == content(tmp_path / "whole")
    assert stacked(out).shape == (23, 32)


def test_a_single_file_may_come_from_standard_input(tiny_folder, source, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(source.read_bytes()))))
    model = ["embed", "--model", str(tiny_folder), "--dtype", "float32"]
    assert main([*model, "-", str(tmp_path / "in.npy")]) == 0
    assert main([*model, str(source), str(tmp_path / "file.npy")]) == 0
    assert (tmp_path / "in.npy").read_bytes() == (tmp_path / "file.npy").read_bytes()


def test_a_name_in_capitals_is_read_as_in_small_letters(tmp_path):
    for name, text in (("S.CSV", "id,text\n1,a b\n"), ("s.JsonL", '{"text": "a b"}\n')):
        (tmp_path / name).write_text(text)
        assert [text for _, text in read_sentences(tmp_path / name)] == ["a b"]


@pytest.fixture
def swapped(embedder, source):
    """An `encode` under which the source changes."""

    def encode(chunks):
        source.write_text("\n".join(reversed(SENTENCES)) + "\n", encoding="utf-8")
        yield from map(embedder.encode, chunks)

    return encode


def test_a_source_that_changes_between_its_two_readings_leaves_no_last_shard(embedder, source, swapped, tmp_path):
    with pytest.raises(SempaError, match="changed while it was being embedded; embed it again, into another"):
        embed_corpus(embedder, source, tmp_path / "out", shard_rows=5, encode=swapped)
    assert not (tmp_path / "out" / "shard-000004.safetensors").exists()


def test_a_change_is_noticed_when_an_earlier_shard_alone_is_missing(embedder, source, swapped, tmp_path):
    embed_corpus(embedder, source, tmp_path / "out", shard_rows=5)
    first = tmp_path / "out" / "shard-000000.safetensors"
    first.unlink()
    with pytest.raises(SempaError, match="changed while it was being embedded"):
        embed_corpus(embedder, source, tmp_path / "out", shard_rows=5, encode=swapped)
    assert not first.exists()


@pytest.mark.parametrize(
    "manifest",
    [
        *("[1]", "null", '{"name": "app"}', '{"settings": {}}'),
        *('{"settings": [3], "shards": []}', '{"settings": null, "shards": []}', '{"settings": {}, "shards": 3}'),
    ],
)
def test_another_programs_manifest_is_one_sentence(embedder, source, tmp_path, manifest):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST_FILE).write_text(manifest)
    with pytest.raises(SempaError, match=r"manifest\.json: cannot be read"):
        embed_corpus(embedder, source, tmp_path / "out")
