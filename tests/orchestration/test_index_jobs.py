"""The jobs that people start by hand on an index: approve, audit, switch, forget."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from pipelines.ask import ask
from pipelines.environment import Environment
from pipelines.stores import Stores
from tests.orchestration.harness import Dagster, checks, failures

POLICIES = [f"# Rule {number}\n\nRule {number} is about item {number * 17}.\n" for number in range(30)]


@pytest.fixture
def policies(data: Path, dagster: Dagster) -> Path:
    """The folder of a source with thirty documents, indexed and served."""
    folder = data / "compliance" / "data" / "policies"
    for number, text in enumerate(POLICIES):
        (folder / f"rule-{number}.md").write_text(text, encoding="utf-8")
    result = dagster.run("compliance_refresh")
    assert result.success, failures(result)
    return folder


def run(dagster: Dagster, job: str, op: str, **config: object) -> dg.ExecuteInProcessResult:
    return dagster.run(f"compliance_{job}", config={"ops": {f"compliance_{op}": {"config": config}}})


def test_a_mass_deletion_waits_for_an_approval_with_a_ceiling(policies: Path, dagster: Dagster) -> None:
    """I7: withheld, shown with the list, approved by a job, never silently."""
    for number in range(25):
        (policies / f"rule-{number}.md").unlink()
    result = dagster.run("compliance_refresh")
    assert result.success, failures(result)
    assert checks(result)["no_deletion_withheld"] is False
    assert checks(result)["documents_fresh"] is False
    figures = dagster.metadata("compliance", "policies")
    assert (figures["withheld"], figures["deleted"]) == (25, 0)
    assert "rule-7.md" in figures["withheld_deletions"]
    assert any("Rule 7" in hit.text for hit in ask("compliance", "Rule 7", top_k=100))

    too_low = run(dagster, "approve_deletions", "delete_approved", source="policies", at_most=24)
    assert not too_low.success
    assert "25 of 31 documents" in failures(too_low)
    unknown = run(dagster, "approve_deletions", "delete_approved", source="wiki", at_most=25)
    assert "give one of policies" in failures(unknown)
    approved = run(dagster, "approve_deletions", "delete_approved", source="policies", at_most=25)
    assert approved.success, failures(approved)
    assert dagster.metadata("compliance", "policies")["deleted"] == 25
    assert not any("Rule 7 " in hit.text for hit in ask("compliance", "Rule 7", top_k=100))
    again = dagster.run("compliance_refresh")
    assert all(checks(again).values())


def test_an_audit_finds_what_is_lost_and_repairs_it_where_that_is_asked_for(policies: Path, dagster: Dagster) -> None:
    stores = Stores(Environment())
    with stores.catalog.connect() as connection:
        collection = connection.exec_driver_sql("select collection from served_collections").scalar_one()
    with stores.index.open(collection) as points:
        points.delete("policies", ["rule-3.md", "rule-4.md"])
        points.flush()
    stores.close()
    found = run(dagster, "audit_index", "compare_index", mode="full")
    assert not found.success
    assert "2 missing (policies/rule-3.md, policies/rule-4.md)" in failures(found)
    assert "repair: true" in failures(found)
    mended = run(dagster, "audit_index", "compare_index", mode="sampled", repair=True)
    assert mended.success, failures(mended)
    assert run(dagster, "audit_index", "compare_index").success


def test_going_back_needs_an_earlier_index(policies: Path, dagster: Dagster) -> None:
    result = dagster.run("compliance_switch_index")
    assert "no earlier index" in failures(result)


def test_forgetting_is_a_dry_run_unless_told_otherwise(policies: Path, dagster: Dagster) -> None:
    documents = ["policies/rule-5.md"]
    assert run(dagster, "forget", "erase", documents=documents).success
    assert any("Rule 5 " in hit.text for hit in ask("compliance", "Rule 5", top_k=100))
    assert run(dagster, "forget", "erase", documents=documents, dry_run=False).success
    assert not any("Rule 5 " in hit.text for hit in ask("compliance", "Rule 5", top_k=100))
    result = dagster.run("compliance_refresh")
    assert result.success, failures(result)
    assert dagster.metadata("compliance", "policies")["added"] == 0
    assert "name documents" in failures(run(dagster, "forget", "erase", dry_run=False))


def test_the_index_shows_its_quality_and_its_lag(policies: Path, dagster: Dagster) -> None:
    figures = dagster.metadata("compliance", "document_index")
    assert figures["questions_generated"] is True
    assert 0 < figures["ndcg_at_10"] <= 1
    assert figures["quality_over_time"].startswith("![retrieval quality over time](data:image/png;base64,")
    (policies / "rule-1.md").write_text("# Rule 1\n\nRule 1 is about something else.\n", encoding="utf-8")
    assert dagster.run("compliance_refresh").success
    assert 0 <= dagster.metadata("compliance", "policies")["lag_p50_seconds"] < 60
    assert "freshness_over_time" in dagster.metadata("compliance", "document_index")


def test_a_source_that_goes_away_fails_and_what_was_indexed_still_answers(policies: Path, dagster: Dagster) -> None:
    shutil.rmtree(policies)
    assert not dagster.run("compliance_refresh").success
    assert ask("compliance", "Rule 9")
