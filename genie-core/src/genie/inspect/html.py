"""A graph as one page that needs nothing else: no network, no server.

All that comes from the graph is one JSON object in an inert script element; scripts show it as text. The page's policy
lets in its own scripts and styles, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import Any

from genie.errors import PlanError
from genie.graph import Graph
from genie.inspect.data import data
from genie.inspect.measured import CostsOfNodes, Traced
from genie.inspect.measured import measured as lay_out
from genie.plan import ExecutionPlan

_SCRIPTS = (
    "model.js",
    "plan.js",
    "bars.js",
    "geometry.js",
    "picture.js",
    "painting.js",
    "gantt.js",
    "network.js",
    "table.js",
    "details.js",
    "plan_details.js",
    "main.js",
)


def page(shown: Graph | ExecutionPlan, measured: CostsOfNodes | Traced | None = None) -> str:
    """The page's text, to be written as UTF-8.

    ``measured`` shows what a plan took beside what was predicted: a cost model over a profile, or the report of an
    emulated run.

    >>> page(plan, measured=profile.model(plan.devices))  # doctest: +SKIP
    >>> page(plan, measured=genie.emulate.report())  # doctest: +SKIP
    """
    if measured is not None and not isinstance(shown, ExecutionPlan):
        raise PlanError("a graph has no times to be measured: schedule it first")
    seen = lay_out(shown, measured) if measured is not None and isinstance(shown, ExecutionPlan) else None
    content = data(shown, seen)
    library = _static("cytoscape.min.js")
    script = "(() => {\n'use strict';\n" + "\n".join(_static(name) for name in _SCRIPTS) + "\n})();"
    styles = (".__________cytoscape_container { position: relative; }", _static("page.css"))
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(library)} {_hash(script)}",
            f"style-src {' '.join(map(_hash, styles))}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    parts = {
        "policy": policy,
        "title": html.escape(content["title"]),
        "library_style": styles[0],
        "style": styles[1],
        "data": embedded(content),
        "library": library,
        "script": script,
    }
    text = _static("page.html")
    pieces = text.split("{{")
    out = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        out += [parts[name], rest]
    return "".join(out)


def embedded(value: Any) -> str:
    """JSON that ends no script element and starts no comment, wherever it stands in a page."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _static(name: str) -> str:
    return (files("genie.inspect") / "static" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
