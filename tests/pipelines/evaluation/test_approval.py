from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipelines.artifacts import Artifact, load, seal
from pipelines.errors import ArtifactError, GateRefusedError
from pipelines.evaluation.approval import approval, approve, may_export
from pipelines.evaluation.gate import decide
from pipelines.evaluation.metrics import Difference
from pipelines.evaluation.settings import GateSettings
from pipelines.fingerprint import fingerprint, write_json_atomically

ASKED = GateSettings(approval=True)


def report(folder: Path, *, passed: bool = True, stated: bool | None = None, name: str = "adapter") -> Artifact:
    folder.mkdir(parents=True)
    difference = Difference(0.1, 0.05, 0.2) if passed else Difference(0, 0, 0)
    verdict = decide(
        rows=100, candidate=0.9, base=0.5, champion=0.8, difference=difference, settings=GateSettings(), task="classify"
    )
    write_json_atomically(folder / "report.json", {"verdict": asdict(verdict)})
    facts = {
        "kind": "evaluation_report",
        "use_case": "shop",
        "adapter_files": {name: "hash"},
        "settings": {"gate": GateSettings().model_dump(mode="json")},
        "verdict": {"passed": verdict.passed if stated is None else stated, "reasons": list(verdict.reasons)},
    }
    seal(folder, {"fingerprint": fingerprint(facts), **facts})
    return load(folder)


def test_what_passed_is_exported_at_once_unless_a_person_is_asked(catalog: sa.Engine, tmp_path: Path) -> None:
    """T6"""
    found = report(tmp_path / "report")
    assert may_export(found, catalog, GateSettings())[0]
    allowed, why = may_export(found, catalog, ASKED)
    assert not allowed
    assert why.startswith("it passed the gate and waits for a person: run the job shop_approve_candidate")
    assert approval(catalog, "shop", found) is None


def test_the_last_word_of_a_person_counts_with_name_and_note(catalog: sa.Engine, tmp_path: Path) -> None:
    found = report(tmp_path / "report")
    approve(catalog, "shop", found, True, "Ada", None)
    assert may_export(found, catalog, ASKED)[0]
    said = approve(catalog, "shop", found, False, "Bob", "too chatty")
    assert approval(catalog, "shop", found) == said
    allowed, why = may_export(found, catalog, ASKED)
    assert not allowed
    assert why.startswith("refused by Bob on 20")
    assert why.endswith("UTC: too chatty")


def test_an_approval_is_about_exactly_the_files_that_were_judged(catalog: sa.Engine, tmp_path: Path) -> None:
    """T15"""
    found, other = report(tmp_path / "report"), report(tmp_path / "other", name="another adapter")
    approve(catalog, "shop", found, True, "Ada", None)
    assert not may_export(other, catalog, ASKED)[0]
    assert approval(catalog, "elsewhere", found) is None


def test_nobody_can_approve_what_the_gate_refused(catalog: sa.Engine, tmp_path: Path) -> None:
    """T7"""
    found = report(tmp_path / "report", passed=False)
    with pytest.raises(GateRefusedError, match="no approval changes that: not surely better than the champion"):
        approve(catalog, "shop", found, True, "Ada", None)
    assert not may_export(found, catalog, GateSettings())[0]
    approve(catalog, "shop", found, False, "Ada", "as the gate says")


def test_a_report_that_was_turned_round_altered_or_is_anothers_is_an_error(catalog: sa.Engine, tmp_path: Path) -> None:
    """T6"""
    turned = report(tmp_path / "turned", passed=False, stated=True)
    with pytest.raises(ArtifactError, match="does not follow from the scores"):
        may_export(turned, catalog, GateSettings())
    found = report(tmp_path / "report")
    with pytest.raises(ArtifactError, match="not the evaluation_report of 'elsewhere'"):
        approve(catalog, "elsewhere", found, True, None, None)
    (found.path / "report.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"differs from its manifest in report.json"):
        may_export(found, catalog, GateSettings())
