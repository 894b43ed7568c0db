"""Embed the sentences of a file as k tokens of the vocabulary each.

    python experiments/spod/embed_sparse.py sentences.txt codes.npz --tokens 64 [--adapter RUN/adapter]

Writes a float32 CSR matrix `[sentences, vocabulary]` for `scipy.sparse.load_npz`.
"""

import sys
from collections.abc import Sequence

from sparse_codes import encode_sparse, write_codes

from sempa import SempaError
from sempa.cli import Parser
from sempa.commands.common import add_model_arguments, load_embedder
from sempa.data.sentences import read_sentences
from sempa.io.files import check_output, user_path
from sempa.io.streams import exit_code


def main(argv: Sequence[str] | None = None) -> None:
    """Embed and write."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("input", type=user_path, help="one sentence a line, or a table with a column of sentences")
    parser.add_argument("output", type=user_path, help=".npz file to write")
    parser.add_argument("--tokens", type=int, default=64, metavar="K", help="of each sentence (default %(default)s)")
    parser.add_argument("--field", help="column or field that holds the sentence (default text)")
    arguments = parser.parse_args(argv)
    if arguments.output.suffix != ".npz":
        raise SempaError(f"output {arguments.output}: expected a name that ends in .npz")
    check_output(arguments.output, arguments.input)
    sentences = [sentence for _, sentence in read_sentences(arguments.input, arguments.field)]
    codes = encode_sparse(load_embedder(arguments).base, sentences, arguments.tokens, show_progress=True)
    write_codes(arguments.output, codes)
    print(f"{codes.shape[0]:,} sentences of {arguments.tokens:,} tokens: {arguments.output}")


if __name__ == "__main__":
    sys.exit(exit_code("embed_sparse.py", main))
