"""`sempa keytokens`: the words that the language model's head finds in an embedding."""

import argparse
import json

from sempa.commands.common import add_model_arguments, load_embedder
from sempa.errors import SempaError


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "keytokens",
        help="print the tokens of the vocabulary that a sentence's embedding is closest to",
        description="Read the PromptEOL embeddings of sentences through the language-model head: the most probable "
        "tokens, those of the sentence marked *, and the entropy of the distribution; with an adapter, both sides.",
    )
    add_model_arguments(parser)
    parser.add_argument("sentences", nargs="+", metavar="sentence", help="one or more sentences, in quotes")
    parser.add_argument("--top", type=int, default=10, help="tokens to print (default %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print one table per sentence."""
    import numpy as np

    from sempa.evaluation.key_tokens import key_tokens
    from sempa.evaluation.measure import embed_sides
    from sempa.report.tables import number, percent, text_table

    if arguments.top < 1:
        raise SempaError(f"top: found {arguments.top}, expected at least 1")
    base = load_embedder(arguments).base
    sides = embed_sides(base, arguments.sentences, aligned=arguments.adapter is not None)
    blocks = []
    for sentence in arguments.sentences:
        columns, rows = [""], [["entropy (nats)"], ["in the sentence"]]
        rows += [[str(rank)] for rank in range(1, arguments.top + 1)]
        for side, vectors in sides.items():
            found = key_tokens(base, [sentence], np.stack([vectors[sentence]]), arguments.top)
            present = found.by_word[0] | found.by_id[0]
            columns += [side, ""]
            rows[0] += [number(found.entropy[0], 2), ""]
            rows[1] += [f"{present.sum()} of {arguments.top}", ""]
            for rank, token in enumerate(found.tokens[0]):
                mark = " *" if present[rank] else "  "
                shown = json.dumps(token, ensure_ascii=False)
                rows[2 + rank] += [shown + mark, percent(float(found.probabilities[0, rank]))]
        blocks.append(text_table(sentence, columns, rows))
    print("\n\n".join(blocks))
