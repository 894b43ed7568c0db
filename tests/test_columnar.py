"""Parquet and datasets folders are read as the same rows in text files are, and vectors come back from every format."""

import csv
import json
import sys

import numpy as np
import pytest
from conftest import tiny_texts

from sempa import SempaError
from sempa.cli import main
from sempa.data.sentences import read_sentences
from sempa.data.sts import read_sts
from sempa.data.triplets import read_triplets
from sempa.embedding.corpus import embed_corpus, read_shards
from sempa.embedding.embedder import Embedder
from sempa.embedding.files import SUFFIXES, read_vectors, write_vectors

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pytest.importorskip("pyarrow.parquet")
COLUMNS = ("sent0", "sent1", "hard_neg")
NLI = [
    {"premise": "A man runs.", "hypothesis": "Somebody moves.", "label": 0, "idx": 7},
    {"premise": "A man runs.", "hypothesis": "It may rain.", "label": 1, "idx": 8},
    {"premise": "A man runs.", "hypothesis": "He sleeps.", "label": 2, "idx": 9},
    {"premise": "A cat sits.", "hypothesis": "Cats exist.", "label": -1, "idx": 10},
]


def write_parquet(path, rows, **options):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


@pytest.fixture
def rows():
    return [dict(zip(COLUMNS, texts, strict=True)) for texts in tiny_texts()]


@pytest.fixture
def text_triplets(triplets_file):
    return [(t.sentence, t.chosen, t.rejected) for t in read_triplets(triplets_file)[0]]


def triplets_of(path):
    triplets, note = read_triplets(path)
    return [(t.sentence, t.chosen, t.rejected) for t in triplets], note


def test_triplets_of_a_parquet_file_are_those_of_the_csv_file(rows, text_triplets, tmp_path):
    # Several row groups, and columns that are not asked for.
    path = write_parquet(tmp_path / "t.parquet", [{**row, "more": [1]} for row in rows], row_group_size=3)
    found, note = triplets_of(path)
    assert found == text_triplets
    assert note == "16 triplets"
    assert read_triplets(path)[0][4].line == 5


def test_triplets_of_a_folder_that_datasets_saved_and_of_a_folder_of_parts(rows, text_triplets, tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "saved", num_shards=3)
    assert triplets_of(tmp_path / "saved")[0] == text_triplets
    data.select(range(15, -1, -1)).save_to_disk(tmp_path / "turned")
    assert triplets_of(tmp_path / "turned")[0] == text_triplets[::-1]
    (tmp_path / "parts").mkdir()
    for part in range(2):
        write_parquet(tmp_path / "parts" / f"train-{part:05d}-of-00002.parquet", rows[8 * part : 8 * part + 8])
    assert triplets_of(tmp_path / "parts")[0] == text_triplets
    write_parquet(tmp_path / "parts" / "test-00000-of-00001.parquet", rows[:1])
    with pytest.raises(SempaError, match="parts: holds the splits test, train; name the files of one"):
        read_triplets(tmp_path / "parts")
    (tmp_path / "plain").mkdir()
    for name in ("train", "testimonials"):
        write_parquet(tmp_path / "plain" / f"{name}.parquet", rows[:1])
    assert len(read_triplets(tmp_path / "plain")[0]) == 1
    write_parquet(tmp_path / "plain" / "test.parquet", rows[:1])
    with pytest.raises(SempaError, match="plain: holds the splits test, train; name the files of one"):
        read_triplets(tmp_path / "plain")
    datasets.DatasetDict({"train": data, "dev": data}).save_to_disk(tmp_path / "both")
    with pytest.raises(SempaError, match="both: holds several splits; name the folder of one"):
        read_triplets(tmp_path / "both")


def test_labelled_rows_with_whole_numbers_as_labels_and_rows_without_text_are_told_apart(tmp_path):
    path = write_parquet(tmp_path / "nli.parquet", NLI)
    found, note = triplets_of(path)
    assert found == [("A man runs.", "Somebody moves.", "He sleeps.")]
    assert "without a gold label: 1, first in line 4" in note
    write_parquet(path, [*NLI[:3], {"premise": "Nothing.", "hypothesis": None, "label": 0, "idx": 1}])
    assert "with an empty field: 1, first in line 4" in triplets_of(path)[1]
    write_parquet(path, [{"premise": ["a"], "hypothesis": "a", "label": 0}])
    with pytest.raises(SempaError, match=r"nli.parquet:1: premise is a list, expected text"):
        read_triplets(path)


def test_scored_pairs_may_be_a_parquet_file(tmp_path):
    pairs = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": float(i)} for i in range(3)]
    path = write_parquet(tmp_path / "mine.parquet", pairs)
    # Also a folder of them.
    for place in (path, tmp_path):
        (task,) = read_sts(place)
        assert [pair.score for pair in task.pairs] == [0.0, 1.0, 2.0]


def test_an_output_on_top_of_a_part_of_the_input_is_refused(tmp_path, capsys):
    path = write_parquet(tmp_path / "part.parquet", [{"text": "A man runs."}])
    before = path.read_bytes()
    assert main(["embed", "--model", "/nowhere", "--field", "text", str(tmp_path), str(path)]) == 2
    assert "part.parquet: is the input itself, which would be lost" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_columns_that_are_not_there_are_named_with_the_nearest(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", [{"sent0": "a", "sent1": "b", "hard_negative": "c"}])
    with pytest.raises(SempaError, match="found the columns 'sent0', 'sent1', 'hard_negative', expected sent0"):
        read_triplets(path)


def test_damaged_and_empty_data_end_with_one_sentence(rows, tmp_path):
    path = write_parquet(tmp_path / "t.parquet", rows)
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole[:8] + bytes(len(whole) - 16) + whole[-8:], b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(SempaError, match=r"t.parquet: cannot be read as columns"):
            read_triplets(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SempaError, match="empty: is a folder without parquet files"):
        read_triplets(tmp_path / "empty")


def test_without_pyarrow_the_error_says_how_to_get_it(rows, tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "t.parquet", rows)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SempaError, match=r"need pyarrow: pip install pyarrow"):
        read_triplets(path)
    with pytest.raises(SempaError, match="need pyarrow"):
        write_vectors(tmp_path / "v.parquet", np.zeros((1, 2), dtype=np.float32))


def test_sentences_come_from_a_column_of_any_format(tmp_path):
    sentences = ["A man runs.", 'He said "hi", twice', "two\nlines"]
    made = [{"id": i, "text": sentence} for i, sentence in enumerate(sentences)]
    write_parquet(tmp_path / "s.parquet", made)
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    for name, delimiter in (("s.csv", ","), ("s.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["id", "text"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(made)
    for suffix in ("parquet", "jsonl", "csv", "tsv"):
        assert [text for _, text in read_sentences(tmp_path / f"s.{suffix}")] == sentences
        with pytest.raises(SempaError, match="expected words"):
            list(read_sentences(tmp_path / f"s.{suffix}", "words"))
    write_parquet(tmp_path / "s.parquet", [*made, {"id": 3, "text": " "}])
    with pytest.raises(SempaError, match=r"s.parquet:4: is empty"):
        list(read_sentences(tmp_path / "s.parquet"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rows", [0, 1, 500])
def test_vectors_come_back_to_the_bit_from_every_format(suffix, rows, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(rows, 7)).astype(np.float32)
    vectors[:1] = [0, -0.0, 1e-42, 3e38, -1, np.float32(1 / 3), 1e-30]
    path = tmp_path / f"v{suffix}"
    write_vectors(path, vectors)
    # A text without a line has no columns either.
    if rows or suffix != ".csv":
        np.testing.assert_array_equal(read_vectors(path), vectors)
        assert read_vectors(path).dtype == np.float32
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_other_tools_read_the_formats(tmp_path):
    from safetensors.numpy import load_file

    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_vectors(tmp_path / "v.safetensors", vectors)
    np.testing.assert_array_equal(load_file(tmp_path / "v.safetensors")["embeddings"], vectors)
    write_vectors(tmp_path / "v.parquet", vectors)
    column = pyarrow.parquet.read_table(tmp_path / "v.parquet")["embedding"]
    assert column.type == pyarrow.list_(pyarrow.float32(), 2)
    assert column.to_pylist() == vectors.tolist()


def test_another_name_is_refused_before_the_work(tmp_path):
    for write in (lambda path: write_vectors(path, np.zeros((1, 2), dtype=np.float32)), read_vectors):
        with pytest.raises(SempaError, match=r"ends in .npy, .csv, .safetensors, .parquet"):
            write(tmp_path / "v.pkl")


def test_the_command_embeds_a_parquet_column_into_parquet_and_into_shards(tiny_folder, tmp_path):
    sentences = ["A man runs.", "Two dogs sleep.", "Hi"]
    source = write_parquet(tmp_path / "s.parquet", [{"sentence": sentence} for sentence in sentences])
    options = ["--model", str(tiny_folder), "--dtype", "float32", "--field", "sentence"]
    assert main(["embed", *options, str(source), str(tmp_path / "v.parquet")]) == 0
    embedder = Embedder(str(tiny_folder), dtype="float32", device="cpu")
    expected = embedder.encode(sentences)
    np.testing.assert_allclose(read_vectors(tmp_path / "v.parquet"), expected, rtol=1e-5, atol=1e-6)
    embed_corpus(embedder, source, tmp_path / "shards", shard_rows=2, shard_format="parquet", field="sentence")
    shards = list(read_shards(tmp_path / "shards"))
    assert [first for first, _ in shards] == [0, 2]
    np.testing.assert_allclose(np.concatenate([vectors for _, vectors in shards]), expected, rtol=1e-5, atol=1e-6)


def test_a_column_that_nobody_asks_for_is_not_read(tmp_path):
    # Python has no such year, so that a reader that took this column, too, would fail.
    far = pyarrow.array([10**15], pyarrow.timestamp("s"))
    table = pyarrow.table({"sent0": ["A man runs."], "when": far, "sent1": ["He runs."], "hard_neg": ["He sits."]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    triplets, _ = read_triplets(tmp_path / "t.parquet")
    assert triplets[0].rejected == "He sits."


def test_vectors_in_several_row_groups_of_parquet_are_read_whole(tmp_path):
    pytest.importorskip("pyarrow.parquet")
    vectors = np.arange(2**20 + 3, dtype=np.float32)[:, None]
    write_vectors(tmp_path / "v.parquet", vectors)
    np.testing.assert_array_equal(read_vectors(tmp_path / "v.parquet"), vectors)
