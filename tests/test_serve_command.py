"""`sempa serve`: its options, its signals and what it prints."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from serving import MESSAGES, SENTENCES, client, reference

from sempa import SempaError
from sempa.cli import main
from sempa.integrations.server.requests import Limits
from sempa.model.adapter_files import save_adapter


@pytest.mark.parametrize("wait", [0, 0.05])
def test_a_sigterm_while_the_server_starts_ends_it(tiny_folder, wait):
    command = [sys.executable, "-m", "sempa", "serve", str(tiny_folder), "--port", "0", "--dtype", "float32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert "http://127.0.0.1:" in process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(30) in (0, 130)
        finally:
            process.kill()


def test_the_command_serves_an_adapter_and_sigterm_finishes_what_is_running(adapted_embedder, tiny_folder, tmp_path):
    save_adapter(adapted_embedder.base.model, tmp_path / "adapter", str(tiny_folder))
    command = [sys.executable, "-m", "sempa", "serve", "--adapter", str(tmp_path), "--port", "0", "--dtype", "float32"]
    # Served from within, a folder has its own name.
    command += ["."]
    # A secret from a file often ends with a line feed.
    environment = os.environ | {"SEMPA_API_KEY": "k\n"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=environment, cwd=tiny_folder) as process:
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        name = tiny_folder.name
        own = client(address, api_key="k")
        (found,) = own.embeddings.create(model=name, input=SENTENCES[0]).data
        np.testing.assert_allclose(found.embedding, reference(adapted_embedder, SENTENCES[:1])[0], atol=2e-6)
        stream = own.chat.completions.create(model=name, messages=MESSAGES, max_tokens=500, seed=1, stream=True)
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        finished = [chunk.choices[0].finish_reason for chunk in stream]
        assert finished[-1] in ("stop", "length")
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_an_address_that_is_taken_and_numbers_out_of_range_are_a_sentence(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
        assert f"serve: cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err
    assert main(["serve", "--host", "a..b"]) == 2
    assert "serve: cannot listen on a..b" in capsys.readouterr().err
    assert main(["serve", "--port", "70000"]) == 2
    assert main(["serve", "--timeout", "nan"]) == 2
    assert "timeout: found nan, expected more than 0" in capsys.readouterr().err
    assert main(["serve", "--timeout", "inf"]) == 2
    assert "timeout: found inf, expected more than 0" in capsys.readouterr().err


@pytest.fixture
def limits_of(monkeypatch):
    """What the command would let its server do, by its arguments."""

    def asked(*arguments):
        found = []

        def stop(_embedder, _name, limits, _key):
            found.append(limits)
            raise SempaError("that is all")

        monkeypatch.setattr("sempa.integrations.server.app.make_app", stop)
        monkeypatch.setattr("sempa.commands.serve.load_embedder", lambda _: None)
        assert main(["serve", "--port", "0", *arguments, "model"]) == 2
        return found[0]

    return asked


def test_the_servers_limits_are_those_of_the_command_line(limits_of):
    found = limits_of("--max-tokens", "77", "--queue", "5", "--timeout", "9")
    assert found == Limits(tokens=77, requests=5, seconds=9.0)


@pytest.mark.parametrize(
    "host, key, warned", [("0.0.0.0", "", True), ("0.0.0.0", "k", False), ("127.0.0.1", "", False)]
)
def test_a_server_that_anybody_reaches_without_a_key_is_warned_of(limits_of, monkeypatch, capsys, host, key, warned):
    monkeypatch.setenv("SEMPA_API_KEY", key)
    limits_of("--host", host)
    assert (f"anyone who reaches {host} can use the model" in capsys.readouterr().err) == warned


def test_a_server_listens_on_an_address_of_version_6(limits_of):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    limits_of("--host", "::1")


def test_without_the_extra_it_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert "uvicorn is missing; in a checkout: pip install '.[serve]'" in capsys.readouterr().err


def test_clients_know_the_model_by_the_name_that_is_given(monkeypatch):
    names = []

    def stop(_embedder, name, *_):
        names.append(name)
        raise SempaError("that is all")

    monkeypatch.setattr("sempa.integrations.server.app.make_app", stop)
    monkeypatch.setattr("sempa.commands.serve.load_embedder", lambda _: None)
    for options in (["--name", "mine"], []):
        assert main(["serve", "--port", "0", *options, "some/model"]) == 2
    assert names == ["mine", "model"]


def test_idle_connections_outlast_those_of_proxies_and_running_requests_have_their_time_to_end(monkeypatch):
    found = []

    def stop(config):
        found.append((config.timeout_keep_alive, config.timeout_graceful_shutdown))
        raise SempaError("that is all")

    monkeypatch.setattr("sempa.integrations.server.app.make_app", lambda *_: None)
    monkeypatch.setattr("sempa.commands.serve.load_embedder", lambda _: None)
    monkeypatch.setattr("uvicorn.Server", stop)
    assert main(["serve", "--port", "0", "--timeout", "600", "model"]) == 2
    assert found == [(75, 601)]


@pytest.mark.parametrize(("started", "status"), [(False, 130), (True, 0)])
def test_a_sigterm_ends_a_server_that_has_not_started_and_one_that_has_ends_by_itself(monkeypatch, started, status):
    class Server:
        def __init__(self, config):
            self.started = started

        def run(self, sockets):
            # A token is sent at once.
            assert sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("sempa.integrations.server.app.make_app", lambda *_: None)
    monkeypatch.setattr("sempa.commands.serve.load_embedder", lambda _: None)
    monkeypatch.setattr("uvicorn.Server", Server)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["serve", "--port", "0", "model"]) == status
    finally:
        signal.signal(signal.SIGTERM, before)
