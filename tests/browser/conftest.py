"""A browser for the tests of the page, and the reviews that they open. Needs playwright and a Chromium."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"]


def chromium_path() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def lacking() -> str:
    """Why no browser can be driven here; blank where one can."""
    if find_spec("playwright") is None:
        return "the browser tests need playwright: pip install playwright"
    return "" if chromium_path() else "the browser tests need a Chromium: apt-get install chromium"


def pytest_collection_modifyitems(items):
    """One line says why all tests of the page are skipped."""
    if reason := lacking():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def browser():
    """Chromium, started for each file: while playwright runs, nothing else in this process can run an event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=ARGUMENTS, timeout=90_000)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """A review of 3D cases: oblique, anisotropic, mirrored, and four orders of the axes."""
    from browsing import VOLUMES, made, served, write_case

    folder = tmp_path_factory.mktemp("volumes")
    for k, (name, grid) in enumerate(VOLUMES.items()):
        write_case(folder, name, *made(grid), suspicion=float(k), flags=("looks odd",) if k == 2 else ())
    with served(folder) as client:
        yield client


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory):
    """A review of one 2D case, a radiograph of 1935 x 2400 with 1,200 landmarks."""
    from browsing import RADIOGRAPH, made, served, write_case

    folder = tmp_path_factory.mktemp("radiographs")
    write_case(folder, "ceph.mha", *made(RADIOGRAPH, more=1194))
    with served(folder) as client:
        yield client


@pytest.fixture(scope="module")
def at_volumes(browser, volumes):
    """One page for all tests of ``volumes``: loading it is slow where the processor draws."""
    yield from _somebody(browser, volumes)


@pytest.fixture(scope="module")
def at_radiographs(browser, radiographs):
    """One page for all tests of ``radiographs``."""
    yield from _somebody(browser, radiographs)


@pytest.fixture
def person(at_volumes):
    """Somebody at the page of ``volumes``; nothing may go wrong unseen."""
    yield at_volumes
    assert not at_volumes.problems


@pytest.fixture
def radiographer(at_radiographs):
    """Somebody at the page of ``radiographs``."""
    yield at_radiographs
    assert not at_radiographs.problems


def _somebody(browser, client):
    from browsing import Person

    context = browser.new_context(viewport={"width": 1000, "height": 700})
    yield Person(context.new_page(), client)
    context.close()
