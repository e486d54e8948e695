"""The page's files as they are shipped."""

from __future__ import annotations

import re

from anatomark.serve.app import PAGE

OWN = [path for path in PAGE.iterdir() if path.suffix in (".js", ".html", ".css", ".svg")]


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_code_from_text():
    assert len(OWN) > 10
    for path in OWN:
        text = path.read_text()
        assert set(re.findall(r"https?://[^/\"'\s]+", text)) <= {"http://www.w3.org"}, path.name
        forbidden = r"\beval\(|new Function|\son\w+=|style=|javascript:"  # by the policy that the page is sent with
        assert not re.search(forbidden, text), path.name
        assert text.count("\n") <= 350, path.name


def test_every_module_and_file_that_the_page_names_is_there():
    for path in OWN:
        for name in re.findall(r"(?:from \"\./|src=\"|href=\")([\w./-]+)\"", path.read_text()):
            assert (PAGE / name).is_file(), f"{path.name} names {name}"
