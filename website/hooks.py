"""What mkdocs is told of this repository: pages that run, files outside ``docs`` that pages link to, the API's names.

The Markdown in ``docs`` is written to be read as it lies in the repository. Here it is made fit for the site: links to
files outside ``docs`` lead to copies in the site, links to examples and notebooks to the pages made of them.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import anatomark
from examples import Shown, shown

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "repository"  # where files that lie outside of docs are in the site
RUN = ("gallery/*.py", "notebooks/*.ipynb")
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#\s])")
FENCE = re.compile(r"^(```.*?^```$)", flags=re.M | re.S)

_examples: dict[str, Shown] = {}  # by the page's src_uri


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """At the foot of each page, the version that it is of."""
    config.copyright = f"anatomark {anatomark.__version__}, {config.copyright}"
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made: of examples, of the public names, of files that others link to."""
    for pattern in RUN:
        for source in sorted((ROOT / "docs").glob(pattern)):
            _add_example(source, files, config)
    files.append(File.generated(config, "reference/api.md", content=_names()))
    _add_linked(files, config)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's Markdown with links that hold in the site, in the dialect of Python-Markdown."""
    if page.file.src_uri == "gallery/index.md":
        markdown = _with_thumbnails(markdown)
    parts = FENCE.split(_relinked(markdown, page.file.src_uri, files))
    return "".join(part if part.startswith("```") else _dialect(part) for part in parts)


def _dialect(text: str) -> str:
    """A list may follow text or a block at once, and a pipe in code in a table is written ``\\|``, as on GitHub."""
    text = re.sub(r"\A\n(?=\S)", "\n\n", text)
    text = re.sub(r"^(?!\s*(?:[-*]|\d+\.) )(\S.*)\n(?=(?:[-*]|1\.) )", r"\1\n\n", text, flags=re.M)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("\\|", "|"), text)


def _add_example(source: Path, files: Files, config: MkDocsConfig) -> None:
    """The page of an example or a notebook, its pictures, and the program itself."""
    page = source.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
    folder, program = posixpath.dirname(page), f"{OUTSIDE}/{source.relative_to(ROOT).as_posix()}"
    made = _examples[page] = shown(source, Path(config.site_dir).parent / "examples")
    note = f"\n[{source.name}]({posixpath.relpath(program, folder)}) made this page when the site was built.\n"
    files.append(File.generated(config, page, content=made.markdown + note))
    files.append(File.generated(config, program, abs_src_path=str(source)))
    for picture in made.pictures:
        files.append(File.generated(config, f"{folder}/{picture.name}", abs_src_path=str(picture)))


def _names() -> str:
    """A page with the docstring of every public name."""
    names = [name for name in anatomark.__all__ if not name.startswith("_")]
    functions = [name for name in names if name[0].islower()]
    text = "# Every name in full\nWhat `import anatomark` gives, from the docstrings. [An overview](python.md).\n"
    return text + "".join(f"\n::: anatomark.{name}\n" for name in [*functions, *sorted(set(names) - set(functions))])


def _add_linked(files: Files, config: MkDocsConfig) -> None:
    """Files outside of docs that pages link to, and those that these link to."""
    waiting = [(f.src_uri, f.content_string) for f in files.documentation_pages()]
    while waiting:
        uri, text = waiting.pop()
        for target in _outside(uri, text):
            inner = _inside(target)
            if inner in files.src_uris:
                continue
            if target.is_dir():
                listing = "".join(
                    f"- [{p.name}]({p.name})\n" for p in sorted(target.iterdir()) if p.name[0] not in "._"
                )
                content = f"# {target.relative_to(ROOT).as_posix()}\n{listing}"
                files.append(File.generated(config, inner, content=content))
                waiting.append((inner, content))
                continue
            files.append(File.generated(config, inner, abs_src_path=str(target)))
            if inner.endswith(".md"):
                waiting.append((inner, target.read_text(encoding="utf-8")))


def _source(uri: str) -> Path:
    """The file of the repository that a page of the site is made of."""
    inside = uri.startswith(f"{OUTSIDE}/")
    return ROOT / uri.removeprefix(f"{OUTSIDE}/") if inside else ROOT / "docs" / uri


def _targets(uri: str, text: str) -> Iterator[tuple[str, Path]]:
    """The links of a page to files of the repository, and these files; of a folder its README, if it has one."""
    for link in LINK.findall("".join(p for p in FENCE.split(text) if not p.startswith("```"))):
        if "://" in link or link.startswith("mailto:"):
            continue
        target = Path(os.path.normpath(_source(uri).parent / link))
        if target.is_dir() and (target / "README.md").is_file():
            target = target / "README.md"
        yield link, target


def _outside(uri: str, text: str) -> Iterator[Path]:
    for _, target in _targets(uri, text):
        if target.exists() and target.is_relative_to(ROOT) and not target.is_relative_to(ROOT / "docs"):
            yield target


def _inside(target: Path) -> str:
    """Where in the site a file of the repository is."""
    if target.is_relative_to(ROOT / "docs"):
        uri = target.relative_to(ROOT / "docs").as_posix()
        page = posixpath.splitext(uri)[0] + ".md"
        return page if page in _examples else uri
    folder = "/index.md" if target.is_dir() else ""
    return f"{OUTSIDE}/{target.relative_to(ROOT).as_posix()}{folder}"


def _relinked(text: str, uri: str, files: Files) -> str:
    """Each link that leads to a file of the repository leads to where this is in the site."""
    new = {}
    for link, target in _targets(uri, text):
        if target.is_relative_to(ROOT):
            inner = _inside(target)
            if inner in files.src_uris:
                new[link] = posixpath.relpath(inner, posixpath.dirname(uri) or ".")
    parts = FENCE.split(text)
    return "".join(p if p.startswith("```") else LINK.sub(lambda m: new.get(m[0], m[0]), p) for p in parts)


def _with_thumbnails(text: str) -> str:
    """The gallery's lists as cards, each with the first picture of its example."""

    def card(match: re.Match[str]) -> str:
        name, link, rest = match.groups()
        uri = posixpath.normpath(f"gallery/{posixpath.splitext(link)[0]}.md")
        picture = posixpath.join(posixpath.dirname(link), _examples[uri].pictures[0].name)
        return f"-   [![{name}]({picture})]({link})\n\n    [**{name}**]({link}){rest}\n"

    def grid(match: re.Match[str]) -> str:
        cards = re.sub(r"^- \[([^]]*)\]\(([^)]*)\)(.*)$", card, match[0], flags=re.M)
        return f'<div class="grid cards" markdown>\n\n{cards}\n</div>\n'

    return re.sub(r"(?:^- \[.*\n)+", grid, text, flags=re.M)
