"""A tiny T5, and servers, which end with their test."""

import threading

import pytest

from data.caption import endpoint as endpoint_lib
from tests.data.caption import cases
from tests.data.caption.server import Server


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory):
    """Folder of an encoder-decoder of random weights. One thread: it is that small."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield cases.save_t5(tmp_path_factory.mktemp("t5"))
    torch.set_num_threads(before)


@pytest.fixture
def serve(monkeypatch):
    """Start servers, which end with the test; pauses are short."""
    monkeypatch.setattr(endpoint_lib, "FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(endpoint_lib, "LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(moods=None):
        servers.append(Server(moods or {}))
        run = threading.Thread(target=servers[-1].serve_forever, args=(0.01,))
        run.start()
        threads.append(run)
        return servers[-1]

    threads: list[threading.Thread] = []
    yield start
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()
