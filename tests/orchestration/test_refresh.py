"""The retrieval loop through Dagster: real instance, real embedded index, real embedder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from pipelines.ask import ask, main
from pipelines.environment import REPOSITORY, Environment
from pipelines.stores import Stores
from tests.orchestration.harness import Dagster, checks, failures

SYNC = ("added", "changed", "deleted", "embedded", "points_deleted", "failed")


def test_documents_become_a_served_index_that_answers_with_versions_and_dates(data: Path, dagster: Dagster) -> None:
    """I15 and I22: a hit carries its text and says which version it is of."""
    result = dagster.run("support_refresh")
    assert result.success, failures(result)
    assert set(checks(result)) == {
        "every_document_readable", "no_deletion_withheld", "index_equals_catalog", "retrieval_gate", "documents_fresh",
    }  # fmt: skip
    assert all(checks(result).values())
    (hit, *_) = ask("support", "How long does the kettle take to boil?")
    assert "190 seconds" in hit.text
    assert hit.uri.endswith("kettle.md")
    assert hit.document_id == "kettle.md"
    assert hit.version
    assert hit.indexed_at.tzinfo is not None
    assert hit.updated_at is not None


def test_a_second_refresh_writes_and_embeds_nothing(data: Path, dagster: Dagster) -> None:
    """I1"""
    assert dagster.run("support_refresh").success
    assert dagster.run("support_refresh").success
    for source in ("product_specs", "parts", "policies"):
        figures = dagster.metadata("support", source)
        assert {figures[name] for name in SYNC} == {0}, (source, figures)
    assert dagster.metadata("support", "product_specs")["unchanged"] == 2


def test_new_edited_and_deleted_documents_all_arrive(data: Path, dagster: Dagster) -> None:
    """I5 and I6"""
    assert dagster.run("support_refresh").success
    specs = data / "support" / "data" / "specs"
    kettle = specs / "kettle.md"
    kettle.write_text(kettle.read_text(encoding="utf-8").replace("190 seconds", "160 seconds"), encoding="utf-8")
    (specs / "toaster.md").unlink()
    (specs / "fan.md").write_text("# Stillwind fan\n\nSix speeds, 22 watts.\n", encoding="utf-8")
    parts = data / "support" / "data" / "parts.csv"
    parts.write_text(parts.read_text(encoding="utf-8").replace("in_stock", "backorder"), encoding="utf-8")
    assert dagster.run("support_refresh").success

    everything = "\n".join(hit.text for hit in ask("support", "kettle toaster fan filter", top_k=100))
    assert "160 seconds" in everything
    assert "190 seconds" not in everything
    assert "Crustline" not in everything
    assert "Stillwind" in everything
    assert "backorder" in everything
    assert "in_stock" not in everything


def test_an_index_that_lost_a_document_fails_its_check_is_not_served_and_is_mended(
    data: Path, dagster: Dagster
) -> None:
    """I9: audited against the catalog, by itself and before serving."""
    assert dagster.run("support_refresh").success
    stores = Stores(Environment())
    with stores.catalog.connect() as connection:
        collection = connection.exec_driver_sql("select collection from served_collections").scalar_one()
    with stores.index.open(collection) as points:
        assert points.delete("product_specs", ["kettle.md"]) > 0
        points.flush()

    index = dg.AssetKey(["support", "document_index"])
    check = dg.AssetSelection.checks(dg.AssetCheckKey(index, "index_equals_catalog"))
    audit = dg.Definitions.merge(
        dagster.definitions, dg.Definitions(jobs=[dg.define_asset_job("audit", selection=check)])
    ).resolve_job_def("audit")
    assert checks(audit.execute_in_process(instance=dagster.instance, raise_on_error=False)) == {
        "index_equals_catalog": False
    }
    served_alone = dagster.run("support_refresh", asset_selection=[index])
    assert not served_alone.success
    assert "product_specs/kettle.md" in failures(served_alone)
    mended = dagster.run("support_refresh")
    assert mended.success, failures(mended)
    assert "190 seconds" in ask("support", "How long does the kettle take to boil?")[0].text


def test_a_source_that_is_not_there_fails_with_what_to_do_and_deletes_nothing(data: Path, dagster: Dagster) -> None:
    assert dagster.run("support_refresh").success
    shutil.rmtree(data / "support" / "data" / "specs")
    result = dagster.run("support_refresh")
    assert not result.success
    assert str(data / "support" / "data" / "specs") in failures(result)
    assert any("190 seconds" in hit.text for hit in ask("support", "kettle", top_k=100))


def test_a_permanent_failure_is_not_tried_again(data: Path, dagster: Dagster) -> None:
    (data / "support" / "data" / "parts.csv").write_text("name\nno key here\n", encoding="utf-8")
    result = dagster.run("support_refresh")
    assert "part_number" in failures(result)
    assert not [event for event in result.all_events if event.is_step_up_for_retry]


def test_a_document_that_cannot_be_read_is_listed_and_holds_nothing_up(data: Path, dagster: Dagster) -> None:
    (data / "support" / "data" / "specs" / "broken.md").write_bytes(b"\xff\xfe\x00broken")
    result = dagster.run("support_refresh")
    assert result.success, failures(result)
    assert checks(result)["every_document_readable"] is False
    figures = dagster.metadata("support", "product_specs")
    assert figures["failed"] == 1
    assert "broken.md" in figures["failed_documents"]
    assert figures["added"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wiki", "anything"], "no use case 'wiki'"),
        (["support", "anything"], "support_refresh"),
        (["support", "  "], "empty"),
        (["support", "anything", "--top-k", "0"], "0"),
        (["compliance", "--classify", "text"], "no published model yet"),
        (["support", "--classify", "text"], "trains a model that writes answers"),
    ],
)
def test_what_cannot_be_answered_ends_with_status_2_and_says_why(
    arguments: list[str], message: str, freshet_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert not freshet_home.exists(), "asking makes nothing"
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out


def test_the_command_answers_people_and_programs(
    data: Path, dagster: Dagster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dagster.run("support_refresh").success
    assert main(["support", "Within how many days can goods come back?", "--top-k", "1"]) == 0
    assert "30 days" in capsys.readouterr().out
    assert main(["support", "Within how many days can goods come back?", "--json", "--top-k", "2"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["hits"]) == 2
    needed = {"text", "uri", "score", "version", "updated_at", "indexed_at", "document_id", "source", "title"}
    assert needed <= answer["hits"][0].keys()


def test_an_asset_is_materialised_from_the_shell(data: Path, tmp_path: Path) -> None:
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copy(REPOSITORY / "deploy" / "dagster-local.yaml", home / "dagster.yaml")
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "pipelines.definitions"]
    command += ["--select", "compliance/policies,compliance/document_index"]
    environment = {**os.environ, "DAGSTER_HOME": str(home)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "30 days" in ask("compliance", "returns")[0].text
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_latest_materialization_event(dg.AssetKey(["compliance", "document_index"]))
