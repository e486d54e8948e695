"""The service from outside: the command in a process of its own, spoken to over HTTP."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

import dicoms
import service
import tiny
from anatomark.io.images import read_image, write_image
from anatomark.io.landmarks import read_landmarks
from anatomark.model.predict import load

MARKUPS = "application/vnd.slicer.mrk+json"
PREDICT = "/v1/models/tiny3d/predict"
QUEUE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, ``tiny3d`` and ``two/tiny2d``, each beside its ``data``."""
    folder = tmp_path_factory.mktemp("service")
    service.trained(folder, 3)
    service.trained(folder / "two", 2)
    return folder


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[service.Service]:
    cases = [f"--cases={folder / 'data' / f'case{i}.nii.gz'}" for i in range(3)]
    models = folder / "tiny3d", folder / "two" / "tiny2d"
    options = "--workers", 2, "--queue", QUEUE, "--max-mb", 1, "--timeout", 60, "--monailabel"
    review = "--out", folder / "corrected", "--train-with", folder / "data" / "cases.csv"
    with service.running(folder, "serve", *models, *options, *cases, *review) as running:
        yield running


@pytest.fixture
def client(running: service.Service) -> Iterator[httpx.Client]:
    with running.client as client:
        yield client


def send(client: httpx.Client, file: Path, model: str = "tiny3d", **data: Any) -> httpx.Response:
    return client.post(f"/v1/models/{model}/predict", files={"image": (file.name, file.read_bytes())}, data=data)


def positions(document: Any) -> np.ndarray[Any, Any]:
    return np.array([mark["position"] for mark in document["landmarks"]])


def test_it_says_what_it_has(client: httpx.Client) -> None:
    health = client.get("/v1/health").json()
    assert (health["status"], health["models"], health["workers"]) == ("ok", ["tiny3d", "tiny2d"], 2)
    three, two = client.get("/v1/models").json()
    assert (three["name"], three["dimension"], two["dimension"]) == ("tiny3d", 3, 2)
    assert [mark["name"] for mark in three["landmarks"]] == ["a", "b", "c"] and "path" not in three


def test_the_files_of_a_dicom_series_are_one_image(client: httpx.Client, folder: Path, tmp_path: Path) -> None:
    (series := tmp_path / "series").mkdir()
    for k, plane in enumerate(tiny.blobs(18)[0].array[0]):
        place = {"ImagePositionPatient": [0, 0, 2 * k], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        dicoms.write(series / f"{k}.dcm", plane.astype(np.int16), PixelSpacing=[2, 2], InstanceNumber=k + 1, **place)
    files = [("image", (f.name, f.read_bytes())) for f in sorted(series.iterdir(), reverse=True)]
    answer = client.post(PREDICT, files=files)
    assert answer.status_code == 200, answer.text
    expected = load(folder / "tiny3d").predict(series).landmarks.points
    np.testing.assert_allclose(positions(answer.json()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha", "nii", "png"])
def test_it_finds_what_predict_finds(client: httpx.Client, folder: Path, tmp_path: Path, ending: str) -> None:
    flat = ending == "png"
    model = folder / "two" / "tiny2d" if flat else folder / "tiny3d"
    file = tmp_path / f"image.{ending}"
    write_image(tiny.blobs(17, 2 if flat else 3)[0], file)
    answer = send(client, file, model.name, **({"spacing": "2"} if flat else {}))
    assert answer.status_code == 200, answer.text
    document = answer.json()
    expected = load(model).predict(file, 2.0 if flat else None)
    np.testing.assert_allclose(positions(document), expected.landmarks.points, rtol=0, atol=1e-9)
    assert (document["model"], document["frame"]) == (load(model).hash, "image" if flat else "LPS")
    assert document["flags"] == list(expected.flags) and "image" not in document


def test_many_at_once_are_each_answered_right(client: httpx.Client, folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.nii.gz" for k in range(20)]
    for k, file in enumerate(files):
        write_image(tiny.blobs(100 + k)[0], file)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda file: send(client, file), files))
    model = load(folder / "tiny3d")
    for file, answer in zip(files, answers, strict=True):
        assert answer.status_code == 200, answer.text
        found = positions(answer.json())
        np.testing.assert_allclose(found, model.predict(file).landmarks.points, rtol=0, atol=1e-9)
    assert client.get("/v1/health").json()["queue"] == 0


def test_a_full_queue_says_when_to_come_again(client: httpx.Client, folder: Path) -> None:
    file = folder / "data" / "case0.nii.gz"
    with ThreadPoolExecutor(3 * QUEUE) as pool:
        answers = list(pool.map(lambda _: send(client, file), range(3 * QUEUE)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused and {answer.status_code for answer in answers} == {200, 503}
    assert int(refused[0].headers["retry-after"]) > 0 and "come again" in refused[0].json()["error"]


def test_a_warm_request_costs_little_more_than_its_prediction(client: httpx.Client, folder: Path) -> None:
    file = folder / "data" / "case0.nii.gz"
    extra = []
    for _ in range(15):
        start = time.perf_counter()
        seconds = send(client, file).json()["seconds"]
        extra.append(time.perf_counter() - start - seconds)
    assert min(extra) < 0.05, extra


def test_points_come_as_markups_too(client: httpx.Client, folder: Path, tmp_path: Path) -> None:
    file = folder / "data" / "case0.nii.gz"
    answer = client.post(PREDICT, files={"image": file.read_bytes()}, headers={"accept": MARKUPS})
    assert answer.headers["content-type"] == MARKUPS
    (tmp_path / "x.mrk.json").write_bytes(answer.content)
    plain = positions(send(client, file).json())
    np.testing.assert_array_equal(read_landmarks(tmp_path / "x.mrk.json").points, plain)


def test_bad_requests_are_told_why(client: httpx.Client, folder: Path) -> None:
    whole = (folder / "data" / "case0.nii.gz").read_bytes()
    picture = (folder / "two" / "data" / "case0.png").read_bytes()
    for content, name, said in (
        (whole[: len(whole) // 2], "x.nii.gz", "x.nii.gz: is cut off"),
        (b"nonsense" * 100, "../../etc/x.nii", "x.nii: is not a NIfTI file"),
        (picture, "x.png", "has no spacing"),
        (b"", "x.nrrd", "is empty"),
    ):
        answer = client.post(PREDICT, files={"image": (name, content)})
        assert answer.status_code == 400 and said in answer.json()["error"], answer.text
        assert "/tmp" not in answer.text and str(folder) not in answer.text
    assert "2D" in client.post(PREDICT, files={"image": ("x.png", picture)}, data={"spacing": "2"}).json()["error"]
    assert client.post(PREDICT, files={"image": whole}, data={"spacing": "wide"}).status_code == 400
    assert client.post(PREDICT).json() == {"error": "body image: Field required"}
    assert client.post("/v1/models/nobody/predict", files={"image": whole}).status_code == 404
    assert client.post("/v1/models/..%2Ftiny3d/predict", files={"image": whole}).status_code == 404


def test_a_header_may_name_no_other_file(client: httpx.Client, folder: Path) -> None:
    voxels = folder / "voxels.raw"
    voxels.write_bytes(bytes(range(256)) * 54)
    nrrd = "NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 24 24 24\n"
    nrrd += "space directions: (2,0,0) (0,2,0) (0,0,2)\nspace origin: (0,0,0)\nencoding: raw\n"
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 24 24 24\nElementType = MET_UCHAR\nElementSpacing = 2 2 2\n"
    for name, text in (
        ("x.nrrd", f"{nrrd}data file: {voxels}\n"), ("x.nhdr", f"{nrrd}datafile: ./{voxels.name}\n"),
        ("x.mhd", f"{meta}ElementDataFile = {voxels}\n"), ("x.mha", f"{meta}ElementDataFile = LIST\n{voxels}\n"),
    ):  # fmt: skip
        own = folder / name
        own.write_text(text)
        assert read_image(own).grid.shape == (24, 24, 24)  # it can be read, by who may choose
        answer = send(client, own)
        assert answer.status_code == 400 and "in another file" in answer.json()["error"], answer.text


def test_a_body_that_is_too_large_is_refused(client: httpx.Client) -> None:
    large = {"image": ("x.nii", bytes((1 << 20) + 1))}
    answer = client.post(PREDICT, files=large)
    assert answer.status_code == 413 and "larger than 1 MB" in answer.json()["error"]

    def chunks() -> Iterator[bytes]:
        yield b'--B\r\nContent-Disposition: form-data; name="image"; filename="x.nii"\r\n\r\n'
        for _ in range(20):
            yield bytes(1 << 17)

    headers = {"content-type": "multipart/form-data; boundary=B"}
    assert client.post(PREDICT, content=chunks(), headers=headers).status_code == 413


def test_strangers_are_refused(client: httpx.Client) -> None:
    assert client.get("/v1/health", headers={"host": "evil.example"}).status_code == 421
    assert client.post("/v1/train", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/page/..%2Fapp.py").status_code == 404
    assert client.get("/page/%2e%2e/app.py").status_code == 404


def test_it_describes_itself_without_help_from_elsewhere(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    page = client.get("/docs").text
    assert {"/v1/health", "/v1/models/{model}/predict", "/v1/cases/{id}/landmarks", "/v1/train"} <= set(paths)
    assert all(path in page for path in paths)
    assert "http://" not in page and "https://" not in page and "<script" not in page


# ---------------------------------------------------------------------- the review


def test_cases_are_reviewed(client: httpx.Client, folder: Path) -> None:
    said = client.get("/v1/review").json()
    assert (said["dimension"], said["model"], said["can_train"]) == (3, "tiny3d", True)
    assert said["train_with"] == ["cases.csv"]
    assert [mark["name"] for mark in said["landmarks"]] == ["a", "b", "c"]
    queue = client.get("/v1/cases", params={"order": "name", "state": "open"}).json()
    assert [row["id"] for row in queue["cases"]] == ["case0", "case1", "case2"] and queue["figures"]["open"] == 3
    assert client.get("/v1/cases", params={"order": "size"}).status_code == 400
    case = client.get("/v1/cases/case0").json()
    assert (case["id"], case["size"], case["spacing"], case["unit_known"]) == ("case0", [24] * 3, [2.0] * 3, True)
    packed = client.get("/v1/cases/case0/image.nii.gz").content
    voxels = np.frombuffer(gzip.decompress(packed)[352:], np.uint8).reshape(24, 24, 24)
    np.testing.assert_array_equal(voxels, read_image(folder / "data" / "case0.nii.gz").array[0])
    for path in ("case9", "case9/image.nii.gz", "case9/landmarks", "..%2Fcase0/landmarks"):
        assert client.get(f"/v1/cases/{path}").status_code == 404


def test_two_tabs_do_not_overwrite_each_other(client: httpx.Client, folder: Path) -> None:
    place = "/v1/cases/case0/landmarks"
    before = client.get(place)
    assert len(before.json()["points"]) == 3
    point = {"name": "b", "state": "moved", "position": [30.0, 16.0, 24.0]}
    body = {"person": "Ada", "points": [point]}
    assert client.put(place, json=body).status_code == 428
    first = client.put(place, json=body, headers={"if-match": before.headers["etag"]})
    assert first.status_code == 200 and first.headers["etag"] != before.headers["etag"]
    assert client.get(place).json() == first.json()
    assert first.json()["points"][1]["position"] == point["position"]
    late = client.put(place, json=body, headers={"if-match": before.headers["etag"]})
    assert late.status_code == 412 and late.json()["current"] == first.json() and "changed" in late.json()["error"]
    assert late.headers["etag"] == first.headers["etag"]
    fresh = {"if-match": first.headers["etag"]}
    for wrong in ({"name": "nobody", "state": "absent"}, {"name": "a", "state": "moved", "position": [1e9, 0, 0]}):
        answer = client.put(place, json={"points": [wrong]}, headers=fresh)
        assert answer.status_code == 400 and answer.json()["error"], answer.text
    assert client.put(place, content=b"{", headers=fresh).status_code == 400
    assert client.get(place).json() == first.json()
    assert read_landmarks(folder / "corrected" / "case0.mrk.json")["b"].tolist() == point["position"]


def test_finished_cases_lead_to_the_next(client: httpx.Client) -> None:
    done = client.post("/v1/cases/case0/done", json={"person": "Ada"})
    assert (done.status_code, done.json()["state"]) == (200, "done") and done.json()["next"] in ("case1", "case2")
    assert client.post("/v1/cases/case2/skip", json={"person": "Ada"}).json()["next"] == "case1"
    assert client.post("/v1/cases/case2/reopen", json={"person": "Ada"}).json()["state"] == "open"
    stale = client.post("/v1/cases/case0/reopen", headers={"if-match": '"old"'})
    assert stale.status_code == 412
    assert client.get("/v1/cases/case0/landmarks", headers={"accept": MARKUPS}).json()["markups"]


def test_training_learns_from_corrections(client: httpx.Client, folder: Path) -> None:
    client.post("/v1/cases/case0/done", json={"person": "Ada"})
    client.post("/v1/cases/case1/done", json={"person": "Ada"})
    assert client.post("/v1/train", json={"minutes": -1}).status_code == 400
    begun = client.post("/v1/train", json={"minutes": 0.05})
    assert begun.status_code == 202, begun.text
    assert client.post("/v1/train", json={"minutes": 1}).status_code == 409
    job: dict[str, Any] = {"state": "running"}
    until = time.monotonic() + 400
    while job["state"] in ("waiting", "running") and time.monotonic() < until:
        time.sleep(0.5)
        job = client.get(f"/v1/jobs/{begun.json()['id']}").json()
    assert (job["state"], job["model"], job["progress"]) == ("done", "tiny3d-1", 1.0), job
    card = (folder / "corrected" / "models" / "tiny3d-1" / "card.md").read_text()
    assert "case5" in card  # one of the cases that are trained on besides
    assert job["lines"] and client.get("/v1/jobs").json()["jobs"] == [job]
    assert client.get("/v1/review").json()["model"] == "tiny3d-1"
    assert "tiny3d-1" in client.get("/v1/health").json()["models"]
    points = {p["name"]: p for p in client.get("/v1/cases/case0/landmarks").json()["points"]}
    assert points["b"]["position"] == [30.0, 16.0, 24.0]  # the person's, though the model's is another
    file = folder / "data" / "case2.nii.gz"
    new = positions(send(client, file, "tiny3d-1").json())
    open_case = client.get("/v1/cases/case2/landmarks").json()["points"]
    np.testing.assert_allclose([p["position"] for p in open_case], new, rtol=0, atol=0.05)
    assert client.get("/v1/jobs/99").status_code == 404
    other = client.post("/v1/train", json={"minutes": 60}).json()["id"]
    assert client.delete(f"/v1/jobs/{other}").json()["state"] == "stopped"
    assert client.get("/v1/review").json()["model"] == "tiny3d-1"
    command = [sys.executable, "-m", "anatomark", "review", "--out", folder / "corrected", "--summary"]
    said = subprocess.run(command, env=service.environment(folder), capture_output=True, text=True, check=True).stdout
    for words in ("2 cases done, ", " begun, ", "tiny3d-1", "on the points that all of them placed"):
        assert words in said, words


# ---------------------------------------------------------------------- MONAI Label


def test_a_client_of_monai_label_gets_points(client: httpx.Client, folder: Path, tmp_path: Path) -> None:
    info = client.get("/info/").json()
    assert "config" not in info and info["models"]["tiny3d"]["type"] == "detection"
    assert info["models"]["tiny3d"]["labels"] == {"a": 1, "b": 2, "c": 3}
    image = client.post(f"/activelearning/{next(iter(info['strategies']))}", json={}).json()
    shown = client.get("/datastore/image", params={"image": image["id"]})
    assert shown.content[:2] == b"\x1f\x8b"
    (tmp_path / image["name"]).write_bytes(shown.content)
    kept = client.put("/session/", files={"files": (image["name"], shown.content)}).json()["session_id"]
    expected = load(folder / "tiny3d").predict(tmp_path / image["name"]).landmarks.points
    for query in (f"session_id={kept}", f"image={image['id']}"):
        answer = client.post(f"/infer/tiny3d?{query}", data={"params": "{}"})
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("multipart/form-data")
        name, content = file_of(answer)
        assert name.endswith(".json")
        (tmp_path / "points.mrk.json").write_bytes(content)
        np.testing.assert_allclose(read_landmarks(tmp_path / "points.mrk.json").points, expected, atol=1e-3)
    assert client.post("/infer/tiny3d?image=nobody", data={"params": "{}"}).status_code == 422
    empty = client.put("/datastore/label?image=case0", files={"label": ("x.json", b"{}")}, data={"params": "{}"})
    assert empty.status_code == 422 and "points" in empty.json()["error"]
    assert client.delete(f"/session/{kept}").status_code == 200
    assert client.post(f"/infer/tiny3d?session_id={kept}").status_code == 404


def file_of(answer: httpx.Response) -> tuple[str, bytes]:
    """The file of a multipart answer, read by the standard library."""
    from email import message_from_bytes

    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + answer.content).get_payload()
    file = next(part for part in parts if part.get_filename())
    assert any(part.get_param("name", header="content-disposition") == "params" for part in parts)
    return file.get_filename(), file.get_payload(decode=True)


# ---------------------------------------------------------------------- 3D Slicer


def test_the_module_for_slicer_speaks_to_it(running: service.Service, folder: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "slicer" / "AnatomarkReview"))
    from AnatomarkReviewLib.client import Client, ServiceError

    client = Client(running.url)
    assert client.models()[0]["name"] == "tiny3d"
    case = client.case("case2")
    assert read_image(client.image("case2", str(tmp_path))).grid.shape == (24, 24, 24)
    positions = {point["name"]: point["position"] for point in case.points}
    positions["a"] = [-11.0, -12.0, 13.0]  # RAS
    saved = client.save(case, positions, {"c"}, "Ada")
    states = {point["name"]: (point["state"], point["position"]) for point in saved.document["points"]}
    assert states["a"] == ("moved", [11.0, 12.0, 13.0]) and states["c"] == ("absent", None)
    assert states["b"][0] == "predicted"
    with pytest.raises(ServiceError, match="was changed") as late:
        client.save(case, {**positions, "b": [0.0, 0.0, 0.0]}, set())
    assert late.value.status == 412
    client.done(saved, "Ada")
    assert client.case("case2").document["state"] == "done"
    (tmp_path / "found.mrk.json").write_bytes(client.predict("tiny3d", str(folder / "data" / "case0.nii.gz")))
    assert read_landmarks(tmp_path / "found.mrk.json").names == ("a", "b", "c")
    with pytest.raises(ServiceError, match="no case is called"):
        client.case("nobody")


# ---------------------------------------------------------------------- what ends


def worker_processes(running: service.Service) -> list[psutil.Process]:
    children = psutil.Process(running.process.pid).children(recursive=True)
    return [p for p in children if "anatomark.serve.worker" in " ".join(p.cmdline())]


def test_a_worker_that_is_killed_costs_one_request(
    running: service.Service, client: httpx.Client, folder: Path
) -> None:
    file = folder / "data" / "case0.nii.gz"
    workers = worker_processes(running)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)  # so that a request is under way when it is killed
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(send, client, file)
        time.sleep(1)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
        failed = waiting.result()
    assert failed.status_code == 500 and "SIGKILL" in failed.json()["error"]
    assert send(client, file).status_code == 200
    assert client.get("/v1/health").json()["status"] == "ok"


def test_the_workers_end_with_the_service(running: service.Service) -> None:
    workers = worker_processes(running)
    assert workers
    running.process.kill()  # nothing is left for it to do; this test is the last
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
