"""What tests of methods on phantoms share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from anatomark.methods.kit.precision import use_bf16


@pytest.fixture(scope="module")
def float32() -> Iterator[None]:
    """Plain convolutions on one thread, so that a training gives the same everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    use_bf16(False)
    yield
    use_bf16(None)
    torch.set_num_threads(threads)
