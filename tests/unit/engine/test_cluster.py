"""What is said where Ray is missing, or does not start; nothing stays behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anatomark.engine import cluster
from anatomark.engine.cluster import Cluster
from anatomark.errors import InputError


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"`engine` ray: Ray is not installed; .*anatomark\[ray\]"):
        Cluster(2)


@pytest.mark.parametrize(("address", "tries"), [(None, 3), ("10.0.0.1:6379", 1)])
def test_a_cluster_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str | None, tries: int
) -> None:
    told: list[dict[str, Any]] = []

    def init(**how: Any) -> None:
        told.append(how)
        raise Exception("timed out\nand more")

    monkeypatch.setattr(Cluster, "_check_address", lambda _: None)
    fake = SimpleNamespace(init=init, shutdown=lambda: None)
    monkeypatch.setattr(cluster, "_ray", lambda: fake)
    monkeypatch.setattr(cluster.tempfile, "tempdir", str(tmp_path))
    before = dict(os.environ)
    said = "`ray_address` 10.0.0.1:6379: timed out$" if address else "Ray cannot be started: timed out$"
    with pytest.raises(InputError, match=said):
        next(Cluster(2, address)(int, [1]))
    assert len(told) == tries and dict(os.environ) == before and not [*tmp_path.iterdir()]
    assert told[0]["address"] == (address or "local") and told[0]["log_to_driver"] is False
    assert [*Cluster(2, address)(int, [])] == []  # nothing to do: nothing is started
    assert len(told) == tries


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no cluster answers there: Connection refused"),
        ("127.0.0.1:99999999", "no cluster answers there"),
        ("10.0.0.1", "give HOST:PORT"),
        ("ray://10.0.0.1:10001", "give HOST:PORT"),
    ],
)
def test_an_address_where_no_cluster_is(monkeypatch: pytest.MonkeyPatch, address: str, said: str) -> None:
    monkeypatch.setattr(cluster, "_ray", lambda: SimpleNamespace(shutdown=lambda: None))
    with pytest.raises(InputError, match=f"`ray_address` {address}: {said}"):
        next(Cluster(2, address)(int, [1]))
