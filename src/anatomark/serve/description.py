"""The page /docs: the interface in words, made here, so that nothing is fetched from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
from typing import Any

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}code{font-family:ui-monospace,monospace}h2 b{display:inline-block;min-width:4.5rem}
h2{font-size:1.05rem;margin-top:2rem;border-top:1px solid #8886;padding-top:1rem}
td{padding:.1rem 1rem .1rem 0;vertical-align:top}"""

HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{HASH}'; base-uri 'none'; frame-ancestors 'none'"


def described(document: dict[str, Any]) -> str:
    """An HTML page of an OpenAPI document."""
    info = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{_text(info['title'])}: HTTP</title><style>{STYLE}</style>",
        f"<h1>{_text(info['title'])} {_text(info['version'])}</h1><p>{_text(info.get('description', ''))}</p>",
        "<p>The same for programs: <a href=/openapi.json>openapi.json</a>. An error is "
        '<code>{"error": "one line"}</code>.</p>',
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation, document))
    return "".join(parts)


def _operation(path: str, method: str, operation: dict[str, Any], document: dict[str, Any]) -> str:
    rows = [
        (p["name"], f"{p['in']}{'' if p.get('required') else ', may be left out'}", p.get("description", ""))
        for p in operation.get("parameters", [])
    ]
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        schema = body["schema"]
        schema = document["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], schema)
        needed = schema.get("required", [])
        for name, field in schema.get("properties", {}).items():
            left = "" if name in needed else ", may be left out"
            rows.append((name, f"{kind}{left}", field.get("description", "")))
    table = "".join(f"<tr><td><code>{_text(a)}</code><td>{_text(b)}<td>{_text(c)}" for a, b, c in rows)
    answers = "".join(
        f"<tr><td>{_text(code)}<td>{_text(answer.get('description', ''))}"
        for code, answer in operation.get("responses", {}).items()
        if code not in ("200", "422")
    )
    text = "".join(f"<p>{_text(part)}</p>" for part in operation.get("description", "").split("\n\n"))
    head = f"<h2><b>{method.upper()}</b> <code>{_text(path)}</code></h2>"
    return head + text + f"<table>{table}</table>" + (f"<table>{answers}</table>" if answers else "")


def _text(value: Any) -> str:
    return html.escape(str(value))
