"""Which device a name means, and what is said of one that is not there."""

from __future__ import annotations

import pytest
import torch

from anatomark.errors import InputError
from anatomark.model.device import find_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return int(request.param)


@pytest.mark.parametrize("gpus", [0, 2], indirect=True)
def test_auto_is_the_gpu_where_there_is_one(gpus: int) -> None:
    for name in (None, "auto", ""):
        assert find_device(name) == torch.device("cuda" if gpus else "cpu")
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_a_gpu_by_its_number(gpus: int) -> None:
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"device 'cuda:2': this machine has 2, counted from 0"):
        find_device("cuda:2")


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_what_is_not_there_is_named_with_the_remedy(gpus: int, name: str) -> None:
    with pytest.raises(InputError, match=f"device '{name}': .* has no {name[:4].rstrip(':')}.*use `device` cpu"):
        find_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:one", "cuda:-1", "CPU", "xla"])
def test_unknown_names_are_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(InputError, match=f"device '{name}' is unknown; use auto, cpu, cuda, cuda:0 or mps"):
        find_device(name)
