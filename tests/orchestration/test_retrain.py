"""The training loop through Dagster: real checks, a real LoRA training in its own process, real GGUF files."""

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psutil
import pytest

from pipelines.declaration import Declaration
from pipelines.environment import Environment
from pipelines.release.classifier import GgufClassifier
from pipelines.release.registry import champion, versions
from pipelines.use_case import UseCase
from resources.stores import StoresResource
from tests.orchestration.harness import Dagster, checks, failures

OPENINGS = ("Hello team,", "Once more:", "To whom it may concern,", "Quick note from Leeds:", "Second letter,", "Hi,")
SENTENCES = {
    "late": ("{} should have come {}", "still no sign of {} since {}", "{} was due {} and is nowhere"),
    "broken": ("{} arrived cracked {}", "unpacking {} {} we found it dented", "{} came in pieces {}"),
    "refund": ("I want my money back for {} bought {}", "please repay {} paid {}", "return the price of {} ordered {}"),
}
SUBJECTS = (
    "the blue kettle",
    "two garden chairs",
    "my order of tea",
    "a box of lamps",
    "one winter coat",
    "the mirror",
)
DAYS = ("on Monday", "on the first of May", "last week", "the day before Easter", "in early June", "this very morning")
CLOSINGS = (
    "Nobody answers the telephone.",
    "I wait for your reply.",
    "My neighbour saw it too.",
    "Photos are attached.",
)


def rows(count: int, *, seed: int = 0, wrong: float = 0.0) -> list[dict[str, Any]]:
    """Examples of three kinds of complaint; a share of labels may be drawn at random."""
    chosen = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        label = chosen.choice(sorted(SENTENCES))
        middle = chosen.choice(SENTENCES[label]).format(chosen.choice(SUBJECTS), chosen.choice(DAYS))
        text = f"{chosen.choice(OPENINGS)} {middle}. {chosen.choice(CLOSINGS)}"
        said = chosen.choice(sorted(SENTENCES)) if chosen.random() < wrong else label
        found[middle] = {"text": text, "label": said, "group": middle}
    return list(found.values())


def write(path: Path, examples: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")


ATTRIBUTES: dict[str, Any] = {
    "name": "complaints",
    "labels": {"url": "labels", "minimum_accepted": 60, "minimum_new": 20, "validation_share": 0.0},
    "fine_tune": {"epochs": 3, "maximum_tokens": 32, "lora": {"rank": 4, "alpha": 8}},
    "evaluation": {"held_out_share": 0.3, "gate": {"minimum_rows": 10}},
    "release": {"quantisations": ["F16", "Q8_0"]},
}


class Complaints(Dagster):
    """A small use case with labels and fine-tuning, and no sources."""

    def __init__(self, instance: dg.DagsterInstance, folder: Path, **changes: Any) -> None:
        self.instance = instance
        self.folder = folder
        self.change(**changes)

    def change(self, **changes: Any) -> None:
        """Load the definitions again, with other attributes."""
        attributes = {**ATTRIBUTES, **changes}
        component: Any = UseCase.model_validate(attributes)
        built = component.build_defs(SimpleNamespace(path=self.folder / "complaints"))
        self.definitions = dg.Definitions.merge(built, dg.Definitions(resources={"stores": StoresResource()}))

    @property
    def labels(self) -> Path:
        return self.folder / "complaints" / "labels" / "first.jsonl"

    def served(self) -> str | None:
        version = champion(Environment().registry_url, "complaints")
        return None if version is None else version.version

    def skipped(self, result: dg.ExecuteInProcessResult) -> set[str]:
        return {str(event.step_key) for event in result.get_step_skipped_events()}


@pytest.fixture
def complaints(freshet_home: Path, tmp_path: Path) -> Iterator[Complaints]:
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        use_case = Complaints(instance, tmp_path)
        write(use_case.labels, rows(100))
        yield use_case


def approval(*, approved: bool) -> dict[str, Any]:
    said = {"approved": approved, "author": "Ada", "note": "read twenty answers"}
    return {"ops": {"complaints__gguf_model": {"config": said}}}


def test_labels_become_a_published_model_a_tie_is_refused_and_a_rollback_has_nothing_to_go_back_to(
    complaints: Complaints,
) -> None:
    """T6, T16: one long story, because each step needs the one before."""
    complaints.change(evaluation={"held_out_share": 0.3, "gate": {"minimum_rows": 10, "approval": True}})
    result = complaints.run("complaints_retrain")
    assert result.success, failures(result)
    assert checks(result) == dict.fromkeys(
        ("enough_good_examples", "nothing_flagged", "no_leakage", "balanced", "no_drift", "gate"), True
    )
    assert "complaints__published_model" in complaints.skipped(result), "it waits for a person"
    assert complaints.served() is None

    unapproved = complaints.run("complaints_retrain", asset_selection=[dg.AssetKey(["complaints", "published_model"])])
    assert "waits for a person" in failures(unapproved), "and in a run of its own, too"

    approved = complaints.run("complaints_approve_candidate", config=approval(approved=True))
    assert approved.success, failures(approved)
    assert checks(approved) == {"parity": True}
    assert complaints.served() == "v1"
    complaints.change()

    observations = result.get_asset_observation_events()
    shown = [event.asset_observation_data.asset_observation.metadata for event in observations]
    assert "estimated/memory_bytes" in shown[0], "what it will need is visible before it trains"
    assert {"loss", "tokens_per_second", "memory_bytes", "seconds_left"} <= shown[1].keys(), "and while it trains"
    figures = complaints.metadata("complaints", "evaluation_report")
    assert figures["candidate_macro_f1"] > 0.8
    assert "data:image/png" in figures["confusion"]
    assert "data:image/png" in complaints.metadata("complaints", "lora_adapter")["loss_curve"]
    assert complaints.metadata("complaints", "gguf_model")["F16_agreement"] == 1.0
    version = champion(Environment().registry_url, "complaints")
    assert version is not None
    classifier = GgufClassifier(version.gguf("Q8_0"))
    assert classifier.predict(["please repay me for the whole of it"]) == [["refund"]]

    again = complaints.run("complaints_retrain")
    assert again.success, "a refusal is an ordinary outcome: " + failures(again)
    assert checks(again)["gate"] is False
    assert {"complaints__published_model"} <= complaints.skipped(again)
    assert not again.asset_materializations_for_node("complaints__gguf_model")
    assert complaints.served() == "v1"
    assert len(versions(Environment().registry_url, "complaints")) == 1

    alone = complaints.run("complaints_retrain", asset_selection=[dg.AssetKey(["complaints", "published_model"])])
    assert not alone.success, "in a run of its own, no check stops it: the stored verdict does"
    assert "GateRefusedError" in failures(alone)

    back = complaints.run("complaints_rollback")
    assert not back.success
    assert "rolled back" in failures(back)
    assert complaints.served() == "v1"

    assert complaints.run("complaints_versions").success
    both = {"ops": {"complaints_look_at_versions": {"config": {"compare": ["v1", "v7"]}}}}
    assert "has no version 'v7'" in failures(complaints.run("complaints_versions", config=both))

    forward = {"ops": {"complaints_move_champion": {"config": {"version": "v9"}}}}
    nowhere = complaints.run("complaints_promote", config=forward)
    assert "has no version 'v9'; published: v1" in failures(nowhere)
    forward["ops"]["complaints_move_champion"]["config"]["version"] = "v1"
    assert complaints.run("complaints_promote", config=forward).success
    assert complaints.metadata("complaints", "published_model")["promoted"] is True


def test_a_deliberately_bad_model_is_not_published(complaints: Complaints) -> None:
    """T7: labels at random teach nothing."""
    write(complaints.labels, rows(100, wrong=1.0))
    complaints.change(evaluation={"held_out_share": 0.3, "gate": {"minimum_rows": 10, "minimum_score": 0.7}})
    result = complaints.run("complaints_retrain")
    assert result.success, failures(result)
    assert checks(result)["gate"] is False
    assert complaints.served() is None


def test_too_many_bad_rows_stop_the_run_before_anything_is_trained(complaints: Complaints) -> None:
    write(complaints.labels, rows(70) + [{"text": "", "label": "late", "group": f"g{n}"} for n in range(70)])
    result = complaints.run("complaints_retrain")
    assert not result.success
    assert checks(result) == {"enough_good_examples": False, "nothing_flagged": True}
    assert "quarantined" in complaints.metadata("complaints", "labelled_examples")
    assert not result.asset_materializations_for_node("complaints__training_set")


def test_near_copies_across_splits_stop_the_run(complaints: Complaints) -> None:
    """T1"""
    text = "the parcel with the blue kettle and two cups should have come on {} and nobody answers the telephone"
    leaked = [
        {"text": text.format("Monday"), "label": "late", "group": "a", "split": "train"},
        {"text": text.format("Monday evening"), "label": "late", "group": "b", "split": "test"},
    ]
    write(complaints.labels, rows(100) + leaked)
    result = complaints.run("complaints_retrain")
    assert not result.success
    assert checks(result)["no_leakage"] is False
    assert not result.asset_materializations_for_node("complaints__lora_adapter")


def kill_training(parent: psutil.Process, output: Path) -> None:
    """Kill the training process below ``parent`` as soon as it has written a checkpoint."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(output.glob(".work/*/checkpoint-*/manifest.json")):
        time.sleep(0.05)
    for child in parent.children(recursive=True):
        if "pipelines.training" in child.cmdline():
            child.kill()


def test_a_training_that_is_killed_is_tried_again_and_goes_on_from_its_checkpoint(complaints: Complaints) -> None:
    """T8"""
    output = Environment().artifacts_folder("complaints", "lora_adapter")
    killer = threading.Thread(target=kill_training, args=(psutil.Process(), output))
    killer.start()
    complaints.change(fine_tune={**ATTRIBUTES["fine_tune"], "checkpoint_minutes": 0.001})
    result = complaints.run("complaints_retrain")
    killer.join(timeout=60)
    assert result.success, failures(result)
    retried = [event for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY]
    assert [event.step_key for event in retried] == ["complaints__lora_adapter"]
    assert "status -9" in str(retried[0].step_retry_data.error)
    shown = [event.asset_observation_data.asset_observation.metadata for event in result.get_asset_observation_events()]
    again = max(number for number, metadata in enumerate(shown) if "estimated/memory_bytes" in metadata)
    assert shown[again + 1]["step"].value > 1, "it went on"
    assert complaints.served() == "v1"


def test_a_base_model_that_does_not_exist_fails_with_what_is_allowed(complaints: Complaints) -> None:
    """T13"""
    complaints.change(fine_tune={"base_model": "no-such-model"})
    result = complaints.run("complaints_retrain")
    assert not result.success
    assert "'no-such-model'" in failures(result)


def test_labels_alone_are_a_use_case() -> None:
    declaration = Declaration.model_validate({"name": "complaints", "labels": {"url": "labels"}})
    assert declaration.fine_tune is None
