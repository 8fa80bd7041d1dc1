"""The code location: names that users rely on, and what the UI shows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import yaml

from pipelines.definitions import build_definitions
from pipelines.environment import REPOSITORY
from pipelines.use_case import UseCase
from resources.stores import StoresResource

TRAINED = {
    "labelled_examples", "training_set", "lora_adapter", "evaluation_report", "gguf_model", "published_model"
}  # fmt: skip
KEYS = {
    "support": {"product_specs", "parts", "policies", "document_index", *TRAINED},
    "compliance": {"policies", "document_index", *TRAINED},
}


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_definitions()


def test_the_definitions_load_as_the_code_server_loads_them(definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)


def test_asset_keys_and_groups_follow_the_use_case(definitions: dg.Definitions) -> None:
    specs = definitions.resolve_all_asset_specs()
    found: dict[str, set[str]] = {}
    for spec in specs:
        use_case, name = spec.key.path
        assert spec.group_name == use_case
        found.setdefault(use_case, set()).add(name)
    assert found == KEYS


def test_a_use_case_without_fine_tuning_has_no_training_assets(tmp_path: Path) -> None:
    attributes = {"name": "wiki", "sources": [{"name": "pages", "type": "folder", "url": "pages"}]}
    component: Any = UseCase.model_validate(attributes)
    built = component.build_defs(SimpleNamespace(path=tmp_path / "wiki"))
    built = dg.Definitions.merge(built, dg.Definitions(resources={"stores": StoresResource()}))
    assert {spec.key.path[-1] for spec in built.resolve_all_asset_specs()} == {"pages", "document_index"}
    jobs = {job.name for job in built.resolve_all_job_defs()}
    assert "wiki_refresh" in jobs
    assert "wiki_retrain" not in jobs


def test_every_asset_says_what_it_is(definitions: dg.Definitions) -> None:
    for spec in definitions.resolve_all_asset_specs():
        assert spec.description, spec.key
        assert spec.description[0].isupper(), spec.key


def test_every_source_has_a_schedule_and_a_freshness_policy(definitions: dg.Definitions) -> None:
    for use_case, source in [("support", "product_specs"), ("support", "parts"), ("compliance", "policies")]:
        schedule = definitions.resolve_schedule_def(f"{use_case}_{source}_schedule")
        assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
        (spec,) = [spec for spec in definitions.resolve_all_asset_specs() if spec.key.path == [use_case, source]]
        assert spec.freshness_policy is not None


def test_a_source_schedule_refreshes_that_source_and_the_index_only(definitions: dg.Definitions) -> None:
    schedule = definitions.resolve_schedule_def("support_policies_schedule")
    with dg.DagsterInstance.ephemeral() as instance:
        tick = schedule.evaluate_tick(dg.build_schedule_context(instance=instance))
    (request,) = tick.run_requests or []
    assert request.asset_selection == [
        dg.AssetKey(["support", "policies"]),
        dg.AssetKey(["support", "document_index"]),
    ]


def test_the_retrain_job_contains_its_checks(definitions: dg.Definitions) -> None:
    """T6: a blocking check stops what follows only inside its own run."""
    job = definitions.resolve_job_def("compliance_retrain")
    checks = {key.name for key in job.asset_layer.asset_graph.asset_check_keys}
    assert {"enough_good_examples", "no_leakage", "gate", "parity"} <= checks


def test_the_workspace_and_the_project_name_the_same_code_location() -> None:
    workspace = yaml.safe_load((REPOSITORY / "workspace.yaml").read_text(encoding="utf-8"))
    assert workspace["load_from"][0]["python_module"]["module_name"] == "pipelines.definitions"
    assert 'code_location_target_module = "pipelines.definitions"' in (REPOSITORY / "pyproject.toml").read_text(
        encoding="utf-8"
    )


def test_the_production_instance_names_the_driver_that_is_installed() -> None:
    """SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3, which dagster-postgres does not bring."""
    instance = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text(encoding="utf-8"))
    assert instance["storage"]["postgres"]["postgres_db"]["scheme"] == "postgresql+psycopg2"
    assert instance["telemetry"] == {"enabled": False}
    assert instance["concurrency"]["pools"]["default_limit"] == 1


def test_every_variable_is_described_in_the_example() -> None:
    from pipelines.environment import Environment

    example = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
    for field in Environment.model_fields.values():
        assert f"\n{field.alias}=" in example
