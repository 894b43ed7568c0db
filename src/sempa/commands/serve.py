"""Serve one model over HTTP: /v1/embeddings, /v1/chat/completions, /v1/models, /health, /metrics."""

import argparse
import os
import signal
import socket
import warnings
from pathlib import Path

from sempa.commands.common import add_model_arguments, at_least, load_embedder
from sempa.errors import SempaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = "If SEMPA_API_KEY is set, clients must send that key. SIGTERM lets running requests finish."
    add_model_arguments(parser, "model", nargs="?")
    parser.add_argument("--name", help="what clients call the model (default: the last part of MODEL)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any (default %(default)s)")
    text = "most tokens of a sentence, or of a chat with its answer (default %(default)s)"
    parser.add_argument("--max-tokens", type=at_least(1), default=8192, help=text)
    parser.add_argument("--queue", type=at_least(1), default=128, help="requests served at once (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds per request (default %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    try:
        import uvicorn

        from sempa.integrations.server.app import make_app
        from sempa.integrations.server.requests import Limits
    except ImportError as error:
        raise SempaError(f"serve: {error.name} is missing; in a checkout: pip install '.[serve]'") from error
    if not 0 < arguments.timeout < float("inf"):
        raise SempaError(f"timeout: found {arguments.timeout}, expected more than 0")
    key = os.environ.get("SEMPA_API_KEY", "").strip()
    if not (key or arguments.host in ("127.0.0.1", "::1", "localhost")):
        warnings.warn(f"SEMPA_API_KEY is not set: anyone who reaches {arguments.host} can use the model", stacklevel=2)
    # Listen before loading the model: a taken address fails at once, and early clients wait.
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    try:
        listener = socket.create_server((arguments.host, arguments.port), family=family)
    except (OSError, OverflowError, TypeError) as error:
        raise SempaError(f"serve: cannot listen on {arguments.host} port {arguments.port}: {error}") from error
    # Connections inherit it: a token is sent at once, not when the client has acknowledged the one before.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    embedder = load_embedder(arguments)
    name = arguments.name or Path(arguments.model).resolve().name
    limits = Limits(tokens=arguments.max_tokens, requests=arguments.queue, seconds=arguments.timeout)
    # Idle connections outlast those of clients and proxies (5 s, 60 s), whose next request would meet a closed one.
    times = {"timeout_keep_alive": 75, "timeout_graceful_shutdown": int(arguments.timeout) + 1}
    host, port = listener.getsockname()[:2]
    print(f"{name}: http://{f'[{host}]' if ':' in host else host}:{port}/v1 (Ctrl-C ends it)", flush=True)
    server = uvicorn.Server(uvicorn.Config(make_app(embedder, name, limits, key), log_level="warning", **times))
    # Once it has started, uvicorn finishes what is running, then sends itself the signal again.
    signal.signal(signal.SIGTERM, lambda *caught: server.started or signal.default_int_handler(*caught))
    server.run(sockets=[listener])
