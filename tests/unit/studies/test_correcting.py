"""The study that corrects predictions through the service of the page, on a review of made-up cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.landmarks import read_landmarks


def test_true_points_are_corrections_and_others_stay_out(study, tmp_path: Path) -> None:
    from browsing import VOLUMES, made, served, write_case

    correcting = study("correcting")
    for k, name in enumerate(list(VOLUMES)[:2]):
        write_case(tmp_path, name, *made(VOLUMES[name]), suspicion=float(k))
    with served(tmp_path) as client:
        page = correcting.Page(str(client.base_url))
        assert page.queue() == ["anisotropic", "oblique"]
        predicted = page.predicted("oblique")
        truth = Landmarks(("spot", "left", "low"), np.stack([predicted["spot"] + 3, predicted["left"], [np.nan] * 3]))
        page.correct("oblique", truth)
        with pytest.raises(InputError, match="PUT /cases/oblique/landmarks: 412"):
            page.ask("PUT", "/cases/oblique/landmarks", {"points": []}, "old")
        with pytest.raises(InputError, match=r"POST /train: 400 .*no single model"):
            page.train(1)
    saved = read_landmarks(tmp_path / "corrected" / "truth" / "oblique.csv#corrected")
    placed = {name: point for name, point in zip(saved.names, saved.points, strict=True) if np.isfinite(point).all()}
    assert placed.keys() == {"spot", "left"}
    np.testing.assert_allclose(placed["spot"], predicted["spot"] + 3, rtol=0, atol=1e-4)


def test_the_new_cases_come_without_their_landmarks(study, tmp_path: Path) -> None:
    manifest = tmp_path / "cases.csv"
    rows = [f"c{k},c{k}.mha,/data/c{k}.csv,{'train' if k < 3 else 'test'},0.1" for k in range(4)]
    manifest.write_text("\n".join(["case,image,landmarks,split,spacing", *rows]) + "\n")
    first, new = study("correcting").divided(manifest, 1, tmp_path / "work")
    assert first.read_text().splitlines()[1:] == [f"c0,{tmp_path / 'c0.mha'},/data/c0.csv,train,0.1"]
    assert new.read_text().splitlines() == [
        "case,image,spacing",
        *(f"c{k},{tmp_path / f'c{k}.mha'},0.1" for k in (1, 2)),
    ]
    with pytest.raises(InputError, match="has 3 training cases; --first 3 must leave some"):
        study("correcting").divided(manifest, 3, tmp_path)
