"""One model does both: it finds the sentences that a question is about, then answers from them in its own words.

    python examples/retrieve_and_answer.py notes/ --adapter runs/smollm2_captions/adapter --question "Who plays music?"

The adapter makes the embeddings good and leaves the chat as it was, so that no second model is in memory.
"""

import argparse
import sys
from collections.abc import Sequence

from semantic_search import Passage, add_arguments, encode_cached, read_passages, search, show

from sempa import Embedder, SempaError
from sempa.evaluation.drift import generate

PROMPT = """\
Here are some notes:

{notes}

Answer in one or two sentences, from these notes alone: {question}"""


def make_prompt(question: str, passages: Sequence[Passage]) -> str:
    """What the model is asked: the found sentences, then the question."""
    notes = "\n".join(f"- {passage.text}" for passage in passages)
    return PROMPT.format(notes=notes, question=question)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer and the sentences that it was given; returns the exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(description="Answer a question from text files, with one model.")
    add_arguments(parser)
    parser.add_argument("--question", required=True, help="what to answer")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        passages = read_passages(arguments.paths)
        embedder = Embedder(arguments.model, arguments.adapter, dtype=arguments.dtype)
        vectors = encode_cached(embedder, [passage.text for passage in passages], arguments.cache)
        found = search(embedder, vectors, arguments.question, arguments.top)
        prompt = make_prompt(arguments.question, [passages[place] for _, place in found])
        print(generate(embedder.base, prompt, arguments.max_new_tokens))
        show(passages, found)
    except SempaError as error:
        print(f"retrieve_and_answer: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
