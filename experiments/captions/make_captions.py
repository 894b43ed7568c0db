"""Write the built-in captions of the package: triplets and graded pairs as CSV files.

    .venv/bin/python experiments/captions/make_captions.py

Without arguments the files in `src/sempa/data/` are written anew, byte for byte as they are. With `--output`, `--seed`
and `--triplets` a larger or another training set is made, which `sempa train CONFIG.yaml triplets=FILE` reads.
"""

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from caption_grammar.make import make_pairs, make_triplets

from sempa.cli import Parser
from sempa.commands.common import at_least
from sempa.io.files import write_atomic
from sempa.io.streams import exit_code

PACKAGE_DATA = Path(__file__).resolve().parents[2] / "src" / "sempa" / "data"
TRAIN, HELD_OUT = 960, 200
DEV, TEST = 300, 600


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=PACKAGE_DATA, help="folder of the files (default: the package)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other sentences (default %(default)s)")
    parser.add_argument("--triplets", type=at_least(1), default=TRAIN, help="for training (default %(default)s)")
    given = parser.parse_args(arguments)
    for split, count in {"train": given.triplets, "heldout": HELD_OUT}.items():
        rows = [(made.sentence, made.chosen, made.rejected) for made in make_triplets(count, given.seed, split)]
        write_csv(given.output / f"captions-{split}.csv", ("sent0", "sent1", "hard_neg"), rows)
    # An odd seed and an even one: no seed's development pairs are another's test pairs.
    for split, count, seed in (("dev", DEV, 2 * given.seed + 1), ("test", TEST, 2 * given.seed + 2)):
        rows = [(made.first, made.second, made.score) for made in make_pairs(count, seed, "heldout")]
        write_csv(given.output / f"captions-{split}.csv", ("sentence1", "sentence2", "score"), rows)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str | float]]) -> None:
    """Write a UTF-8 file with LF line ends, whatever the system's own are."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomic(path, text.getvalue())


if __name__ == "__main__":
    sys.exit(exit_code("make_captions.py", main))
