"""The site's own code: what it finds wrong in a built site, and what it makes of pages and examples."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _website(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "website"))


def _site(folder: Path, **pages: str) -> Path:
    for name, body in pages.items():
        (folder / f"{name}.html").write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
    return folder


def test_a_sound_site_has_no_problems(tmp_path: Path) -> None:
    import check

    (tmp_path / "a.png").write_bytes(b"")
    there = '<a href="b.html#x">b</a> <a href="https://e.org/y">y</a> <img src="a.png"> <a href="#t">t</a><p id="t">'
    assert check.problems(_site(tmp_path, a=there, b='<h2 id="x">x</h2>')) == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="c.html">', "c.html leads nowhere"),
        ('<a href="b.html#y">', "b.html#y leads nowhere"),
        ('<a href=".">', ". leads nowhere"),
        ('<img src="gone.png">', "gone.png leads nowhere"),
        ('<script src="https://example.org/x.js"></script>', "loads https://example.org/x.js"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "loads //example.org/x.css"),
        ('<p style="background: url(https://example.org/x.png)">', "loads https://example.org/x.png"),
    ],
)
def test_each_kind_of_problem_is_found(tmp_path: Path, body: str, problem: str) -> None:
    import check

    assert check.problems(_site(tmp_path, a=body, b='<h2 id="x">x</h2>')) == [f"a.html: {problem}"]


def test_a_style_sheet_that_loads_from_elsewhere_is_found(tmp_path: Path) -> None:
    import check

    (tmp_path / "x.css").write_text("@import 'https://example.org/y.css'; a { background: url(z.png) }")
    assert check.problems(tmp_path) == ["x.css: loads https://example.org/y.css"]


def test_a_script_is_cells_of_text_and_code() -> None:
    examples = pytest.importorskip("examples", reason="comes with pip install '.[docs]'", exc_type=ImportError)
    cells = examples.of_script(
        '"""# Title\n\nText.\n"""\n\n# %%\nx = 1\n\n# %% [markdown]\n# More *text*.\n\n# %%\nprint(x)\n'
    ).cells
    assert [(c.cell_type, c.source) for c in cells] == [
        ("markdown", "# Title\n\nText."),
        ("code", "x = 1"),
        ("markdown", "More *text*."),
        ("code", "print(x)"),
    ]


@pytest.mark.slow
def test_an_example_is_run_and_shown_and_a_faulty_one_is_an_error(tmp_path: Path) -> None:
    examples = pytest.importorskip("examples", reason="comes with pip install '.[docs]'", exc_type=ImportError)
    script = tmp_path / "one.py"
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nprint('drawn')"
    script.write_text(f'"""# One"""\n\n# %%\n{plot}\n')
    shown = examples.shown(script, tmp_path / "kept")
    assert [p.name for p in shown.pictures] == ["one-01.png"] and shown.pictures[0].stat().st_size > 1000
    assert (
        shown.markdown.startswith("# One\n") and "drawn\n```" in shown.markdown and "![](one-01.png)" in shown.markdown
    )
    assert "matplotlib.lines" not in shown.markdown  # the value of a last line
    script.write_text('"""# One"""\n\n# %%\n1 / 0\n')
    with pytest.raises(Exception, match="ZeroDivisionError"):
        examples.shown(script, tmp_path / "kept")


def test_pages_are_made_fit_for_the_site() -> None:
    hooks = pytest.importorskip("hooks", reason="comes with pip install '.[docs]'", exc_type=ImportError)
    assert hooks._dialect("Ours are:\n- one\n- two\n") == "Ours are:\n\n- one\n- two\n"
    assert hooks._dialect("\n- after a block\n") == "\n\n- after a block\n"
    assert hooks._dialect("- one\n- two\n  more\n- three\n") == "- one\n- two\n  more\n- three\n"
    assert hooks._dialect("| `A\\|B` | x |\n") == "| `A|B` | x |\n"
    links = dict(
        hooks._targets("how-to/benchmark.md", "[a](../../studies/README.md#x) [b](https://e.org) [c](metrics.md)")
    )
    assert links == {
        "../../studies/README.md": ROOT / "studies/README.md",
        "metrics.md": ROOT / "docs/how-to/metrics.md",
    }
    assert hooks._inside(ROOT / "studies/README.md") == "repository/studies/README.md"
    assert hooks._inside(ROOT / "docs/concepts/pin.md") == "concepts/pin.md"


def test_roles_of_docstrings_become_markdown() -> None:
    roles = pytest.importorskip("roles", reason="comes with pip install '.[docs]'", exc_type=ImportError)
    assert roles.plain("see :func:`~anatomark.a.b` and :meth:`close`") == "see `b` and `close`"
