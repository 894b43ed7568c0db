"""`sempa embed`: the lines of a file as vectors."""

import argparse
import sys
from pathlib import Path

import numpy as np

from sempa.commands.common import add_model_arguments, add_readout_arguments, load_embedder
from sempa.errors import SempaError


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "embed",
        help="embed sentences, one a line, into a .npy or .csv file",
        description="Embed the lines of a text file: one float32 row per line, in the file's order.",
    )
    add_model_arguments(parser)
    add_readout_arguments(parser)
    parser.add_argument("input", help="UTF-8 text file with one sentence per line, or - for standard input")
    parser.add_argument("output", type=Path, help="file to write: .npy (NumPy array [n, D]) or .csv")
    parser.add_argument("--batch-size", type=int, default=32, help="sentences at a time (default %(default)s)")
    parser.add_argument("--normalize", action="store_true", help="scale every embedding to length 1")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Embed the input's lines and write the vectors."""
    from sempa.files import replace_atomically, write_atomic

    if arguments.output.suffix not in (".npy", ".csv"):
        raise SempaError(f"output {arguments.output}: expected a name that ends in .npy or .csv")
    sentences = _read_lines(arguments.input)
    vectors = load_embedder(arguments).encode(sentences, arguments.batch_size, True, arguments.normalize)
    if arguments.output.suffix == ".csv":
        rows = (",".join(f"{value:.9g}" for value in vector) for vector in vectors)
        write_atomic(arguments.output, "".join(f"{row}\n" for row in rows))
    else:

        def save(path: Path) -> None:
            with path.open("wb") as stream:
                np.save(stream, vectors, allow_pickle=False)

        replace_atomically(arguments.output, save)
    print(f"{len(vectors):,} embeddings of {vectors.shape[1]} dimensions: {arguments.output}")


def _read_lines(name: str) -> list[str]:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise SempaError(f"input {name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SempaError(f"input {name}: line {line} is not UTF-8 text") from error
    lines = text.replace("\r\n", "\n").split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise SempaError(f"input {name}: is empty, expected one sentence per line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise SempaError(f"input {name}: line {number} is empty, expected one sentence per line")
    return lines
