"""Answer a prompt through the model's chat template, token by token, with the adapter if one is given."""

import argparse

from sempa.commands.common import add_model_arguments, at_least, load_embedder
from sempa.errors import SempaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("prompt", help="what the user says, in quotes; - is standard input")
    parser.add_argument("--system", metavar="TEXT", help="system message (default: what the chat template itself says)")
    parser.add_argument("--max-new-tokens", type=at_least(1), default=128, help="longest answer (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 answers greedily (default %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="sampling seed (default %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Print the answer's text as it grows."""
    from sempa.batching.prompts import encode_texts, render_messages, render_prompt
    from sempa.io.rows import STANDARD_INPUT, numbered_lines
    from sempa.model.sampling import encode_prompts, end_tokens, stream_answer

    prompt, longest = arguments.prompt, arguments.max_new_tokens
    if prompt == str(STANDARD_INPUT):
        prompt = "".join(line for _, line in numbered_lines(STANDARD_INPUT)).strip()
    base = load_embedder(arguments).base
    messages = [{"role": "system", "content": arguments.system}] if arguments.system is not None else []
    messages.append({"role": "user", "content": prompt})
    if base.tokenizer.chat_template is not None:
        text = render_messages(base.tokenizer, messages, add_generation_prompt=True)
    elif arguments.system is not None:
        raise SempaError("system: the model has no chat template, so no system message either")
    else:
        text = render_prompt(base.tokenizer, prompt)
    (ids,) = encode_prompts(base, encode_texts(base.tokenizer, [text]), longest)
    answer = stream_answer(base, ids, longest, arguments.temperature, 1.0, arguments.seed, end_tokens(base))
    for _, text in answer:
        print(text, end="", flush=True)
    print()
