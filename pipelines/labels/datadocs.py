"""Great Expectations' Data Docs as a folder of plain pages: rendered by its own renderers, complete in themselves.

Its site builder would store every unexpected value, and its pages load scripts, styles and a logo from seven hosts.
Here results are stripped to numbers before they are rendered, and pages to what needs no network.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

KEPT_RUNS = 10
"""Validations that stay; older pages are removed."""

_NUMBERS = re.compile(r"(?:element|unexpected|missing)_(?:count|percent)(?:_total|_nonmissing)?")
_REMOTE = re.compile(
    r"<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*>|<footer\b.*?</footer>|url\(['\"]?https?:[^)]*\)"
    r"|<nav\b.*?</nav>|<div class=\"card[^>]*>\s*<div class=\"card-header p-2\">\s*<strong>Actions</strong>"
    r".*?</label>\s*</div>\s*</div>\s*</div>",
    re.DOTALL,
)
_HEAD = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; vertical-align: top; }
.alert, .card-header { background: #f2f2f2; padding: .6rem 1rem; }
.card, a[data-toggle] { display: none; }
.card.collapse { display: block; }
h1, h2, h3, h4, h5, h6 { margin: .4rem 0; }
.badge { background: #eee; border-radius: .3rem; padding: 0 .3rem; }
.fa-check-circle::before { content: "met"; color: #18794e; font-style: normal; }
.fa-times::before { content: "not met"; color: #b4232a; font-style: normal; }
.fa-exclamation-triangle::before { content: "could not be evaluated"; color: #b4232a; font-style: normal; }
</style>
"""


def write_docs(folder: Path, results: Mapping[str, Any]) -> Path:
    """Add one run to the site in ``folder`` and return its ``index.html``.

    Args:
        folder: made where it is missing; pages are replaced one by one, the index last, so that readers always find
            a whole site.
        results: ``ExpectationSuiteValidationResult`` with its ``ExpectationSuite``, by the name of the suite. Values
            are taken out: pages hold numbers only.
    """
    from great_expectations.render.renderer.page_renderer import (
        ExpectationSuitePageRenderer,
        ValidationResultsPageRenderer,
    )
    from great_expectations.render.view.view import DefaultJinjaPageView

    view: Any = DefaultJinjaPageView()
    result_page: Any = ValidationResultsPageRenderer()
    suite_page: Any = ExpectationSuitePageRenderer()
    at = datetime.now(UTC)
    run: dict[str, Any] = {"at": at.isoformat(timespec="seconds"), "suites": []}
    for name, (result, suite) in results.items():
        page = f"validations/{at:%Y%m%dT%H%M%S%f}-{name}.html"
        result.meta = {"great_expectations_version": result.meta["great_expectations_version"], "run_id": run["at"]}
        for one in result.results:
            one.result = {key: value for key, value in one.result.items() if _NUMBERS.fullmatch(key)}
        _write(folder / page, _plain(view.render(result_page.render(result))))
        _write(folder / f"expectations/{name}.html", _plain(view.render(suite_page.render(suite))))
        rows = max((one.result.get("element_count", 0) for one in result.results), default=0)
        statistics = result.statistics
        met, all_of_them = statistics["successful_expectations"], statistics["evaluated_expectations"]
        run["suites"].append({"name": name, "page": page, "rows": rows, "met": met, "of": all_of_them})
    runs = [run, *_earlier(folder)]
    _write(folder / "runs.json", json.dumps(runs[:KEPT_RUNS], indent=1))
    index = folder / "index.html"
    _write(index, _index(runs[:KEPT_RUNS]))
    kept = {suite["page"] for run in runs[:KEPT_RUNS] for suite in run["suites"]}
    for path in (folder / "validations").glob("*.html"):
        if f"validations/{path.name}" not in kept:
            path.unlink(missing_ok=True)
    return index


def _earlier(folder: Path) -> list[dict[str, Any]]:
    """Runs whose pages are still there; a list that cannot be read is begun anew."""
    try:
        runs = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
        return [run for run in runs if all((folder / suite["page"]).is_file() for suite in run["suites"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _plain(page: str) -> str:
    page = _REMOTE.sub("", page).replace("../../../../expectations/", "../expectations/")
    return page.replace("<head>", f"<head>\n{_HEAD}", 1)


def _index(runs: list[dict[str, Any]]) -> str:
    rows = "".join(
        f'<tr><td>{html.escape(run["at"])}</td><td><a href="{suite["page"]}">{html.escape(suite["name"])}</a></td>'
        f'<td><a href="expectations/{suite["name"]}.html">expectations</a></td>'
        f"<td>{suite['rows']:,}</td><td>{suite['met']} of {suite['of']}</td></tr>"
        for run in runs
        for suite in run["suites"]
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="UTF-8">\n<title>Expectations of examples</title>\n'
        f"{_HEAD}</head>\n<body>\n<h1>Expectations of examples</h1>\n<p>Each row of a run is judged by itself "
        f"(examples), then among the others (relations). An expectation is met where no row misses it.</p>\n<table>\n"
        f"<tr><th>Run</th><th>Results</th><th>Suite</th><th>Rows judged</th><th>Expectations met</th></tr>\n{rows}"
        f"\n</table>\n</body>\n</html>\n"
    )


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(content, encoding="utf-8")
    staged.replace(path)
