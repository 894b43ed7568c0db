"""The built-in captions: the files are the generator's, and a count and a seed choose among their rows."""

import csv
import itertools
from collections import Counter
from pathlib import Path

import pytest
from conftest import load_script

from sempa import data
from sempa.batching.batches import load_dataset
from sempa.config import Config, load_config
from sempa.data.sts import ScoredPair, StsTask, caption_pairs
from sempa.data.triplets import caption_triplets
from sempa.run import BUILTIN_PAIRS, development_sample

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "captions" / "make_captions.py"
DATA = Path(data.__file__).parent


def rows(name):
    with (DATA / name).open(encoding="utf-8", newline="") as stream:
        return [tuple(row) for row in csv.reader(stream)][1:]


def texts(triplets):
    return [(triplet.sentence, triplet.chosen, triplet.rejected) for triplet in triplets]


def test_the_generator_makes_the_packages_files_byte_for_byte(tmp_path):
    load_script(SCRIPT).main(["--output", str(tmp_path)])
    made, shipped = ({path.name: path.read_bytes() for path in folder.glob("*.csv")} for folder in (tmp_path, DATA))
    assert made.keys() == shipped.keys()
    assert [name for name in made if made[name] != shipped[name]] == []


def test_a_larger_training_set_begins_with_the_packages(tmp_path):
    load_script(SCRIPT).main(["--output", str(tmp_path), "--triplets", "1000"])
    larger = (tmp_path / "captions-train.csv").read_bytes()
    assert larger.startswith((DATA / "captions-train.csv").read_bytes())
    assert larger.count(b"\n") == 1001


@pytest.mark.parametrize(("split", "size"), [("train", 960), ("heldout", 200)])
def test_seed_zero_takes_triplets_in_the_files_order(split, size):
    found = caption_triplets(split)
    assert texts(found) == rows(f"captions-{split}.csv")
    assert [triplet.line for triplet in found] == list(range(2, size + 2))
    assert caption_triplets(split, 7) == found[:7]
    assert caption_triplets(split, 0) == []


def test_another_seed_takes_other_triplets_of_the_same_file():
    whole, other = caption_triplets("train"), caption_triplets("train", seed=1)
    assert other != whole
    assert Counter(other) == Counter(whole)
    assert caption_triplets("train", 352, seed=1) == other[:352]
    samples = [set(caption_triplets("train", 352, seed)) for seed in (0, 1, 2)]
    # Two random samples of 352 out of 960 share 129 on average, with a standard deviation of 7.
    assert all(90 < len(one & two) < 170 for one, two in itertools.pairwise(samples))


@pytest.mark.parametrize(("split", "size"), [("dev", 300), ("test", 600)])
def test_pairs_are_those_of_the_file_and_cover_the_scale_evenly(split, size):
    pairs = caption_pairs(split)
    assert [(pair.first, pair.second, str(pair.score)) for pair in pairs] == rows(f"captions-{split}.csv")
    assert len({(pair.first, pair.second) for pair in pairs}) == size
    assert caption_pairs(split, 50) == pairs[:50]
    for part in (pairs, pairs[:50]):
        grades = Counter(min(4, int(pair.score)) for pair in part)
        # The file's two decimals can lift a score of 0.997 over the border.
        assert all(abs(grades[grade] - len(part) / 5) <= 1 for grade in range(5))


def test_no_held_out_premise_and_no_sentence_of_a_pair_was_trained_on():
    triplets = texts(caption_triplets("train"))
    trained = {sentence for triplet in triplets for sentence in triplet}
    # An answer may coincide: what a held-out premise entails can be as general as what a training premise does.
    assert not {premise for premise, *_ in triplets} & {t.sentence for t in caption_triplets("heldout")}
    pairs = {split: {(pair.first, pair.second) for pair in caption_pairs(split)} for split in ("dev", "test")}
    assert not trained & {sentence for pair in pairs["dev"] | pairs["test"] for sentence in pair}
    assert not pairs["dev"] & pairs["test"]


def test_the_files_hold_what_the_default_config_asks_for():
    config = Config()
    assert len(caption_triplets("train", config.triplet_limit or None, config.seed)) == 960
    assert len(caption_triplets("heldout", config.held_out, config.seed)) == config.held_out
    assert development_sample(config, []).pairs == caption_pairs("dev", config.dev_pairs)
    assert len(caption_pairs("test", BUILTIN_PAIRS)) == BUILTIN_PAIRS


@pytest.mark.parametrize(
    "recipe", sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_recipe_has_development_pairs_without_a_file_of_them(recipe):
    assert len(development_sample(load_config(recipe), []).pairs) >= 100


def test_a_run_trains_on_the_captions_that_its_config_asks_for(tokenizer):
    found = load_dataset(Config(triplet_limit=5, held_out=3, seed=2), tokenizer, 4096)
    assert [row.sentence for row in found.train] == [t.sentence for t in caption_triplets("train", 5, 2)]
    assert [row.sentence for row in found.held_out] == [t.sentence for t in caption_triplets("heldout", 3, 2)]
    assert found.notes == ["5 built-in triplets"]
    everything = load_dataset(Config(held_out=0), tokenizer, 4096)
    assert (len(everything.train), everything.held_out) == (960, [])


def test_a_seed_draws_its_own_development_pairs():
    task = StsTask("mine", [ScoredPair(f"a {i}", f"b {i}", i % 5) for i in range(40)])
    first, second = (development_sample(Config(dev_pairs=9, seed=seed), [task]).pairs for seed in (0, 1))
    assert len(first) == 9
    assert first != second


def test_no_seeds_development_pairs_are_the_packages_test_pairs(tmp_path):
    load_script(SCRIPT).main(["--output", str(tmp_path), "--triplets", "1", "--seed", "1"])
    with (tmp_path / "captions-dev.csv").open(encoding="utf-8", newline="") as stream:
        drawn = [tuple(row) for row in csv.reader(stream)][1:]
    assert len(set(drawn) & set(rows("captions-test.csv"))) < len(drawn) / 2
