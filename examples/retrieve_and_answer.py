"""Retrieve and answer with one model behind one address, by OpenAI's client:

    sempa serve smollm2-135m --adapter runs/smollm2_captions &
    python examples/retrieve_and_answer.py notes/ --question "Who plays music?"

The adapter makes the embeddings good and leaves the chat nearly as it was, so that no second model is in memory.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from openai import OpenAI, OpenAIError
from semantic_search import Passage, read_passages, show

from sempa import SempaError
from sempa.commands.common import at_least

PROMPT = """\
Here are some notes:

{notes}

Answer in one or two sentences, from these notes alone: {question}"""


def embed(client: OpenAI, model: str, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors `[n, D]`, a thousand texts a request."""
    parts = (texts[begin : begin + 1000] for begin in range(0, len(texts), 1000))
    return np.array([one.embedding for part in parts for one in client.embeddings.create(model=model, input=part).data])


def make_prompt(question: str, passages: Sequence[Passage]) -> str:
    """What the model is asked: the found sentences, then the question."""
    notes = "\n".join(f"- {passage.text}" for passage in passages)
    return PROMPT.format(notes=notes, question=question)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer as it grows, then the sentences behind it; returns the exit code, 2 for what went wrong."""
    parser = argparse.ArgumentParser(description="Answer a question from text files, with one model.")
    parser.add_argument("paths", nargs="+", type=Path, help="text files, or folders of them")
    parser.add_argument("--question", required=True, help="what to answer")
    parser.add_argument("--server", default="http://127.0.0.1:8000/v1", help="the server (default %(default)s)")
    parser.add_argument("--key", default="none", help="the server's API key")
    parser.add_argument("--top", type=at_least(1), default=3, help="sentences to answer from (default %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        passages = read_passages(arguments.paths)
        client = OpenAI(base_url=arguments.server, api_key=arguments.key)
        model = next(iter(client.models.list())).id
        scores = embed(client, model, [p.text for p in passages]) @ embed(client, model, [arguments.question])[0]
        best = np.argsort(-scores, kind="stable")[: arguments.top].tolist()
        prompt = make_prompt(arguments.question, [passages[place] for place in best])
        messages = [{"role": "user", "content": prompt}]
        ask = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 64}
        for chunk in client.chat.completions.create(**ask, stream=True):
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()
        show(passages, [(float(scores[place]), place) for place in best])
    except (SempaError, OpenAIError) as error:
        print(f"retrieve_and_answer: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
