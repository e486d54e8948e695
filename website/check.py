"""Checks a built site: ``python website/check.py build/site``. No page may load anything from elsewhere, and every link
within the site has to lead to a file, and to a place in it."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "form": "action",
}
NO_LOAD = {"canonical", "alternate", "next", "prev", "edit"}  # kinds of <link> that only name a page
ELSEWHERE = re.compile(r"^(?:https?:)?//")
STYLE = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])((?:https?:)?//[^'\")\s]+)")


class Reader(HTMLParser):
    """What a page links to, what it loads, and the places in it."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag in LOADS and LOADS[tag] in given and not (tag == "link" and given.get("rel") in NO_LOAD):
            self.loads.append(given[LOADS[tag]])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.loads += STYLE.findall(given.get("style", ""))


def problems(site: Path) -> list[str]:
    """A line for each link that leads nowhere and each thing that a page or style sheet loads from elsewhere."""
    pages = {path.resolve(): Reader(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: loads {url}" for url in page.loads if ELSEWHERE.match(url)]
        links = page.links + page.loads
        if name.name == "404.html":  # a server shows it anywhere, so its links begin at the top
            links = [link.lstrip("/") for link in links]
        found += [f"{name}: {link} leads nowhere" for link in links if not _leads(link, path, pages)]
    for sheet in site.rglob("*.css"):
        loads = STYLE.findall(sheet.read_text(encoding="utf-8"))
        found += [f"{sheet.relative_to(site)}: loads {url}" for url in loads]
    return found


def _leads(link: str, path: Path, pages: dict[Path, Reader]) -> bool:
    """Whether there is what a link names; links to elsewhere are taken as they are."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return False  # a folder too: from file:// it opens no page
    return not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].places


def main() -> int:
    """Print the problems; 1 where there are any."""
    site = Path(sys.argv[1])
    found = problems(site)
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.stdout.write(f"{len(list(site.rglob('*.html')))} pages, {len(found)} problems\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
