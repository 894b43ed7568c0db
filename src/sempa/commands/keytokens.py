"""`sempa keytokens`: the words that the language model's head finds in an embedding."""

import argparse
import json

from sempa.commands.common import add_model_arguments, add_readout_arguments, load_embedder
from sempa.errors import SempaError


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "keytokens",
        help="print the tokens of the vocabulary that a sentence's embedding is closest to",
        description="Read the embeddings of sentences through the language-model head: the most probable tokens, those "
        "of the sentence marked *, and the entropy of the distribution; with an adapter, before and after.",
    )
    add_model_arguments(parser)
    add_readout_arguments(parser)
    parser.add_argument("sentences", nargs="+", metavar="sentence", help="one or more sentences, in quotes")
    parser.add_argument("--top", type=int, default=10, help="tokens to print (default %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print one table per sentence."""
    from sempa.evaluation.compare_spaces import embed_sides, passed_final_norm
    from sempa.evaluation.key_tokens import key_tokens
    from sempa.report.html import number, share, text_table

    if arguments.top < 1:
        raise SempaError(f"top: found {arguments.top}, expected at least 1")
    embedder = load_embedder(arguments)
    base, readout, layer = embedder.base, embedder.readout, embedder.layer
    sides = embed_sides(base, arguments.sentences, readout, layer, arguments.adapter is not None)
    normed = passed_final_norm(base, readout, layer)
    read = {
        side: key_tokens(base, arguments.sentences, vectors, arguments.top, normed) for side, vectors in sides.items()
    }
    for place, sentence in enumerate(arguments.sentences):
        columns, rows = [""], [["entropy (nats)"], ["in the sentence"]]
        rows += [[str(rank)] for rank in range(1, arguments.top + 1)]
        for side, tokens in read.items():
            present = tokens.by_word[place] | tokens.by_id[place]
            columns += [side, ""]
            rows[0] += [number(tokens.entropy[place], 2), ""]
            rows[1] += [f"{present.sum()} of {arguments.top}", ""]
            for rank, token in enumerate(tokens.tokens[place]):
                mark = " *" if present[rank] else "  "
                shown = json.dumps(token, ensure_ascii=False)
                rows[2 + rank] += [shown + mark, share(float(tokens.probabilities[place, rank]))]
        print(text_table(sentence, columns, rows), end="\n\n" if sentence is not arguments.sentences[-1] else "\n")
