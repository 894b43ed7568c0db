"""The config: strict names, types and ranges, each error one sentence that names the place."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sempa import SempaError
from sempa.batching.batches import MAX_LENGTH
from sempa.config import Config, dump_config, load_config
from sempa.training.step import MAX_GRAD_NORM, WARMUP

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    config = load_config(write(tmp_path, "beta: 0.2\nbatch_size: 8\n"), ["batch_size=16", "sts_dir=a b"])
    assert (config.beta, config.batch_size, config.sts_dir) == (0.2, 16, "a b")
    assert config.lora_rank == Config().lora_rank


def test_a_number_without_a_decimal_point_is_a_number(tmp_path):
    config = load_config(write(tmp_path, "learning_rate: 1e-4\nbeta: 1\n"), ["anchor=5e-1", "lora_alpha=16"])
    assert (config.learning_rate, config.beta, config.anchor, config.lora_alpha) == (1e-4, 1.0, 0.5, 16.0)


@pytest.mark.parametrize(
    "text", ["010", "1_0", "1:30", "0x1F", "1.10", "1.", "on", "2026-01-05", "2026-13-45", "9" * 240, "runs#3", "~x"]
)
def test_a_text_stays_as_it_is_written(tmp_path, text):
    """YAML 1.1 would make numbers, dates and booleans of these."""
    assert load_config(write(tmp_path, f"output: {text}\n")).output == text
    assert load_config(write(tmp_path, ""), [f"output={text}"]).output == text
    assert load_config(write(tmp_path, ""), [f"output={text} #3"]).output == f"{text} #3"


@pytest.mark.parametrize("none", ["null", "~", ""])
def test_nothing_is_nothing_in_the_file_and_on_the_command_line(tmp_path, none):
    assert load_config(write(tmp_path, f"device: {none}\n")).device == ""
    assert load_config(write(tmp_path, "device: cpu\n"), [f"device={none}"]).device == ""


def test_a_name_shared_by_a_number_and_a_text_is_read_as_either_needs_it(tmp_path):
    config = load_config(write(tmp_path, "output: &n 010\nbatch_size: *n\nmodel: *n\n"))
    assert (config.output, config.batch_size, config.model) == ("010", 10, "010")


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_experiment_is_valid(path):
    load_config(path)


@pytest.mark.parametrize("name", ["paper_llama2_7b", "paper_llama3_8b"])
def test_the_paper_experiments_hold_the_published_hyper_parameters(name):
    config = load_config(EXPERIMENTS / f"{name}.yaml")
    published = {
        "objective": "dpo",
        "preference": 1.0,
        "preference_fraction": 1.0,
        "contrast": 0.0,
        "retention": 0.0,
        "anchor": 0.0,
        "kl_budget": 0.0,
        "lora_rank": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "learning_rate": 1e-4,
        "weight_decay": 0.1,
        "beta2": 0.95,
        "batch_size": 256,
        "beta": 0.1,
        "epochs": 1.0,
        "eval_every": 78,
        "dtype": "bfloat16",
        "triplet_limit": 0,
    }
    assert {key: getattr(config, key) for key in published} == published
    assert (WARMUP, MAX_GRAD_NORM, MAX_LENGTH) == (0.05, 1.0, 1024)


def test_a_shipped_file_holds_only_what_differs_from_the_default_recipe():
    for path in EXPERIMENTS.glob("*.yaml"):
        for key, value in yaml.safe_load(path.read_text()).items():
            assert value != getattr(Config(), key), f"{path.name}: {key}"


def test_the_home_folder_is_found_in_paths_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(
        write(tmp_path, "output: ~/runs\nmodel: ~/m\n"), ["triplets=~/a.csv", "gsm8k=~/g", "sts_dir=x/~/y"]
    )
    assert config.output == str(tmp_path / "runs")
    assert (config.triplets, config.gsm8k) == (str(tmp_path / "a.csv"), str(tmp_path / "g"))
    assert (config.sts_dir, config.model) == ("x/~/y", "~/m")
    # A user of a container may have none.
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 999_999)
    assert load_config(write(tmp_path, "output: ~/runs\n")).output == "~/runs"


def test_the_config_is_read_without_torch():
    code = "import sys, sempa.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(
    values=st.builds(
        Config,
        seed=st.integers(0, 99),
        beta=st.floats(0.001, 9),
        output=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1).map(lambda s: f"r{s}"),
        combinations=st.booleans(),
    )
)
def test_a_dumped_config_reads_back_equal(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(dump_config(values), encoding="utf-8")
    assert load_config(path) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "config.yaml: unknown key 'learning_rat'; the nearest known key is 'learning_rate'"),
        ("lr: 1", "unknown key 'lr'"),
        ("beta: hello", "config.yaml: beta is 'hello', expected a number"),
        ("beta: true", "beta is 'true', expected a number"),
        ("batch_size: 3.5", "batch_size is '3.5', expected a whole number"),
        ("batch_size: true", "batch_size is 'true', expected a whole number"),
        ("batch_size: 0", "batch_size is 0, expected at least 1"),
        ("combinations: 1", "combinations is '1', expected true or false"),
        ("beta: 1\nmodel: [a]", "config.yaml: line 2: expected `key: value` with one plain value"),
        ("seed: 0x" + "f" * 5000, "seed is '0xfff.*, expected a whole number"),
        ("beta: " + "9" * 5000, "beta is inf, expected above 0"),
        ("seed: 2001-99-99", "seed is '2001-99-99', expected a whole number"),
        ("beta: 0", "beta is 0.0, expected above 0"),
        ("beta: nan", "beta is nan, expected above 0"),
        ("learning_rate: inf", "learning_rate is inf"),
        ("anchor: -1", "anchor is -1.0, expected at least 0"),
        ("dtype: float16", "dtype is 'float16', expected one of auto, bfloat16, float32"),
        ("kl_budget: -1", "kl_budget is -1.0, expected at least 0"),
        ("output: ''", "output is '', expected a name or a path"),
        ("beta2: 1", "beta2 is 1.0, expected from 0 to below 1"),
        ("objective: none\ncontrast: 0", "objective, anchor and contrast are all off, so there is nothing to learn"),
        ("dev_pairs: 1", "dev_pairs is 1, expected at least 2"),
        ("epochs: 0", "epochs is 0.0, expected above 0"),
        ("preference_fraction: 1.5", "preference_fraction is 1.5, expected above 0, at most 1"),
        ("lora_rank: 0", "lora_rank is 0, expected at least 1"),
        ("seed: 2147483648", "seed is 2147483648, expected from 0 to below 2,147,483,648"),
        ("- a\n- b", "config.yaml: expected lines of `key: value`"),
        ("beta: 1\nbeta: 2", "line 2: key 'beta' appears twice"),
        ("beta: [", "config.yaml: is not valid YAML: .*line 1"),
        ("beta: " + 5_000 * "[", "config.yaml: is not valid YAML: maximum recursion depth exceeded"),
        ("? [a]\n: 1", "line 1: expected `key: value`"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place_and_what_was_expected(tmp_path, text, message):
    with pytest.raises(SempaError, match=message):
        load_config(write(tmp_path, text))


def test_wrong_overrides_and_unreadable_files_are_named(tmp_path):
    good = write(tmp_path, "")
    assert load_config(good) == Config()
    with pytest.raises(SempaError, match="argument 'beta': expected key=value"):
        load_config(good, ["beta"])
    with pytest.raises(SempaError, match=r"command line: unknown key 'betta'.*'beta'"):
        load_config(good, ["betta=1"])
    with pytest.raises(SempaError, match=r"command line: beta is '\[', expected a number"):
        load_config(good, ["beta=["])
    with pytest.raises(SempaError, match=r"nowhere.yaml: cannot be read: No such file"):
        load_config(tmp_path / "nowhere.yaml")
    bad = tmp_path / "latin.yaml"
    bad.write_bytes("output: caf\xe9".encode("latin-1"))
    with pytest.raises(SempaError, match="is not UTF-8 text"):
        load_config(bad)


def test_every_key_has_a_plain_type():
    assert {field.type for field in dataclasses.fields(Config)} <= {str, int, float, bool}
