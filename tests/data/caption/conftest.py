"""A tiny T5, made once."""

import pytest

from tests.data.caption import cases


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory):
    """Folder of an encoder-decoder of random weights. One thread: it is that small."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield cases.save_t5(tmp_path_factory.mktemp("t5"))
    torch.set_num_threads(before)
