"""Broken input at every reader: a result or a sentence that names the file, never a traceback."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import load_script, make_llama
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from sempa import SempaError
from sempa.config import Config, load_config
from sempa.data.triplets import read_triplets
from sempa.model.adapter_files import CONFIG_FILE, read_adapter, save_adapter
from sempa.model.lora import add_lora

RELIABILITY = Path(__file__).resolve().parents[1] / "experiments" / "reliability"


@pytest.fixture(scope="module")
def fuzzer():
    return load_script(RELIABILITY / "fuzz.py")


def test_a_thousand_broken_inputs_end_in_a_result_or_a_sentence(fuzzer, tmp_path, monkeypatch):
    """The nightly fuzzer's first inputs; `make fuzz` runs a hundred thousand."""
    monkeypatch.setenv("SEMPA_CACHE", str(tmp_path / "cache"))
    result = fuzzer.fuzz(1000, 0, tmp_path)
    assert result["findings"] == []
    for name, counts in result["readers"].items():
        assert counts.get("refused"), name
    # Mutants that are still sound show that the sound files are.
    assert sum(counts.get("read", 0) for counts in result["readers"].values()) > 50


def test_the_fuzzer_reports_what_a_careless_reader_does(fuzzer, tmp_path, monkeypatch):
    """Its own test: another exception, a silent file, several lines and a hang are all findings."""

    def careless(inside):
        data = next(inside.iterdir()).read_bytes()
        if len(data) % 4 == 0:
            raise KeyError("a traceback")
        if len(data) % 4 == 1:
            raise SempaError("no file is named")
        if len(data) % 4 == 2:
            while True:
                pass

    monkeypatch.setattr(fuzzer, "SECONDS_PER_INPUT", 1)
    reader = load_script(RELIABILITY / "readers.py").Reader("careless", [{"a": b"0123456789" * 9}], careless, 1)
    monkeypatch.setattr(fuzzer, "readers", lambda _: [reader])
    found = {finding["what"].partition(":")[0] for finding in fuzzer.fuzz(20, 0, tmp_path)["findings"]}
    assert found == {"KeyError", "the message does not name the file", "TooLong"}


def refused_or_read(read, path):
    try:
        return read(path)
    except SempaError as error:
        assert str(path.parent) in str(error)
        assert str(error).isprintable()


def cells():
    return st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.lists(st.tuples(cells(), cells(), cells()), min_size=1, max_size=5), st.sampled_from(",\t"))
@settings(max_examples=150)
def test_whatever_a_csv_library_writes_is_read_back_or_refused(tmp_path_factory, rows, delimiter):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter)
    try:
        writer.writerows([("sent0", "sent1", "hard_neg"), *rows])
    except csv.Error:  # before Python 3.11 a NUL cannot be written
        reject()
    path = tmp_path_factory.getbasetemp() / "h.csv"
    path.write_text(stream.getvalue(), encoding="utf-8", newline="")
    triplets = refused_or_read(lambda p: read_triplets(p)[0], path)
    good = [row for row in rows if all(cell.strip() for cell in row) and row[1].strip() != row[2].strip()]
    plain = [row for row in good if not any(c in "".join(row) for c in "\r\n\0\x1c\x1d\x1e\x85\u2028\u2029")]
    if plain and len(plain) == len(rows):
        assert {(t.sentence, t.chosen, t.rejected) for t in triplets} == {tuple(map(str.strip, row)) for row in rows}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*Config.__dataclass_fields__, "other"]), json_values, max_size=4))
@settings(max_examples=150)
def test_any_yaml_value_of_any_key_makes_a_config_or_a_sentence(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "h.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=False))
    config = refused_or_read(load_config, path)
    if config is not None:
        assert isinstance(config, Config)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    model = make_llama()
    add_lora(model, 2, 4)
    save_adapter(model, folder, "source")
    return folder, json.loads((folder / CONFIG_FILE).read_text())


@given(
    st.sampled_from(("r", "lora_alpha", "lora_dropout", "peft_type", "base_model_name_or_path", "use_dora")),
    json_values,
)
@settings(max_examples=150)
def test_any_value_in_an_adapters_config_is_used_or_refused(adapter, key, value):
    folder, config = adapter
    (folder / CONFIG_FILE).write_text(json.dumps({**config, key: value}))
    refused_or_read(lambda path: read_adapter(path.parent), folder / CONFIG_FILE)


def test_an_arrays_header_that_promises_more_than_the_file_holds_is_refused(tmp_path):
    from sempa.embedding.files import read_vectors

    path = tmp_path / "v.npy"
    np.save(path, np.ones((2, 3), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(2, 3)", b"(2, 3)".replace(b"2", b"9")))
    with pytest.raises(SempaError, match="cannot be read"):
        read_vectors(path)
