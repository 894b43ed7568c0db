"""A server on a tiny model in a thread, and the clients that ask it."""

import contextlib
import json
import re
import socket
import threading
import time

import httpx
import openai
import uvicorn

from sempa.batching.prompts import encode_texts, render_messages
from sempa.integrations.server.app import make_app
from sempa.integrations.server.requests import Limits
from sempa.model.sampling import sample

SENTENCES = ["A man pets a dog.", "Two girls ride a horse over there, don't they?", "Hi", "A bird sings 🎵 to a cat"]
MESSAGES = [{"role": "user", "content": "Who pets a dog?"}]
CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"


@contextlib.contextmanager
def serving(embedder, api_key="", **limits):
    """The server in a thread; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = make_app(embedder, "tiny", Limits(**limits), api_key)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def client(address, **options):
    return openai.OpenAI(base_url=f"{address}/v1", **{"api_key": "any", "max_retries": 0} | options)


def post(address, path, body, **options):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{address}{path}", content=content, timeout=60, **options)


def metric(address, name):
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{address}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def reference(embedder, sentences):
    return embedder.encode(sentences, normalize=True)


def answer(embedder, messages, count, temperature=0.0, top_p=1.0, seed=0):
    """What `sample` makes of the model's own template."""
    base = embedder.base
    (prompt,) = encode_texts(base.tokenizer, [render_messages(base.tokenizer, messages, add_generation_prompt=True)])
    ((found,),) = sample(base, [prompt], 1, count, temperature, top_p, seed)
    return prompt, found
