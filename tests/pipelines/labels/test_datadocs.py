from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.labels import datadocs
from pipelines.labels.expectations import Candidate, judge
from pipelines.labels.settings import LabelSettings

SETTINGS = LabelSettings(url="x", minimum_characters=12)
PRIVATE = "jane.doe@acme.com"


def rows(number: int = 3) -> list[Candidate]:
    texts = ["too short", f"Write to {PRIVATE}, please", *(f"Where is parcel {n}, the blue one" for n in range(number))]
    return [
        Candidate(text, ("a",), text, False, "train", "human", None, f"a:{n}", None) for n, text in enumerate(texts)
    ]


def pages(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in folder.rglob("*.html")}


def test_a_run_leaves_pages_with_numbers_and_without_a_single_value(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    judge(SETTINGS, rows(), docs=docs)
    written = pages(docs)
    assert len(written) == 5
    index = written["index.html"]
    for link in re.findall(r'href="([^"]+)"', index):
        assert (docs / link).is_file(), link
    assert ">5<" in index, "rows judged"
    results = next(page for name, page in written.items() if "-examples" in name)
    assert "20% unexpected" in results
    assert "values must be greater than or equal to" in results
    for name, page in written.items():
        assert PRIVATE not in page, name
        assert "too short" not in page, name
        assert "parcel" not in page, name
        assert not re.search(r"<script|<link|<img|src=|url\(|https?://", page), name
        for link in re.findall(r'href="([^"#]+)"', page):
            assert ((docs / name).parent / link).is_file(), (name, link)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".html", ".json")]


def test_older_runs_are_removed_and_a_broken_list_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datadocs, "KEPT_RUNS", 2)
    for _ in range(3):
        judge(SETTINGS, rows(), docs=tmp_path)
    assert len(list((tmp_path / "validations").iterdir())) == 4
    assert (tmp_path / "index.html").read_text("utf-8").count("validations/") == 4
    (tmp_path / "runs.json").write_text("[{", "utf-8")
    judge(SETTINGS, rows(), docs=tmp_path)
    assert len(list((tmp_path / "validations").iterdir())) == 2


def test_rows_that_bring_their_verdict_are_not_in_the_pages_of_single_rows(tmp_path: Path) -> None:
    first = judge(SETTINGS, rows())
    known = [
        Candidate(row.text, row.labels, row.group, False, "train", "human", None, row.location, None, judged=judgement)
        for row, judgement in zip(rows(), first, strict=True)
    ]
    again = judge(SETTINGS, known, docs=tmp_path)
    assert [judgement.reasons for judgement in again] == [judgement.reasons for judgement in first]
    assert {path.name.partition("-")[2] for path in (tmp_path / "validations").iterdir()} == {"relations.html"}


def test_many_rows_make_no_larger_pages(tmp_path: Path) -> None:
    judge(SETTINGS, rows(2), docs=tmp_path / "few")
    judge(SETTINGS, rows(3000), docs=tmp_path / "many")
    few, many = (sum(map(len, pages(tmp_path / name).values())) for name in ("few", "many"))
    assert abs(many - few) < 1000
