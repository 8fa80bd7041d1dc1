"""Labels through Dagster: what people decide about single examples, and chats that get their context."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from pipelines.environment import Environment
from pipelines.labels.examples import read_split
from pipelines.labels.review import listed
from pipelines.stores import Stores
from pipelines.use_case import UseCase
from resources.stores import StoresResource
from tests.orchestration.harness import Dagster, checks, failures
from tests.pipelines.chat_base import QUESTIONS, answer_of, make_chat_base
from tests.pipelines.chat_base import THINGS as COLOURS
from tests.pipelines.release.ollama_server import Ollama

THINGS = ("kettle", "lamp", "chair", "tent", "toolbox", "suitcase", "blender", "hose", "helmet", "raincoat")


class Desk(Dagster):
    """A use case with a source, chats and no model that has to be trained here."""

    def __init__(self, instance: dg.DagsterInstance, folder: Path) -> None:
        self.instance = instance
        self.folder = folder / "desk"
        self.release: dict[str, Any] = {}
        self.change(base_model="all-MiniLM-L6-v2")

    def change(self, **fine_tune: Any) -> None:
        attributes = {
            "name": "desk",
            "sources": [{"name": "pages", "type": "folder", "url": "pages"}],
            "labels": {
                "url": "labels",
                "minimum_accepted": 5,
                "maximum_quarantined_share": 0.5,
                "near_duplicates": "off",
            },
            "fine_tune": {"task": "generate", **fine_tune},
            "evaluation": {"held_out_share": 0.3, "gate": {"minimum_rows": 5}, "maximum_answer_tokens": 32},
            "prompt": {"context_tokens": 200},
            "release": {"quantisations": ["F16", "Q8_0"], **self.release},
        }
        component: Any = UseCase.model_validate(attributes)
        built = component.build_defs(SimpleNamespace(path=self.folder))
        self.definitions = dg.Definitions.merge(built, dg.Definitions(resources={"stores": StoresResource()}))

    def write(self, chats: list[dict[str, Any]]) -> None:
        path = self.folder / "labels" / "chats.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in chats), encoding="utf-8")


@pytest.fixture
def desk(freshet_home: Path, tmp_path: Path) -> Iterator[Desk]:
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        use_case = Desk(instance, tmp_path)
        (use_case.folder / "pages").mkdir(parents=True)
        for number, thing in enumerate(THINGS):
            page = f"# The {thing}\n\nThe {thing} weighs {number + 2} kilograms and is sold in a box.\n"
            (use_case.folder / "pages" / f"{thing}.md").write_text(page, encoding="utf-8")
        use_case.write(
            [
                {"prompt": f"How heavy is the {thing}?", "completion": f"The {thing} weighs {number + 2} kilograms."}
                for number, thing in enumerate(THINGS)
            ]
        )
        yield use_case


@pytest.fixture
def ollama() -> Iterator[Ollama]:
    server = Ollama()
    yield server
    server.shutdown()
    server.server_close()


def test_chats_without_a_context_are_frozen_with_what_the_served_index_finds(desk: Desk) -> None:
    assert desk.run("desk_refresh").success
    keys = [dg.AssetKey(["desk", name]) for name in ("labelled_examples", "training_set")]
    result = desk.run("desk_retrain", asset_selection=keys)
    assert result.success, failures(result)
    assert checks(result)["no_leakage"]
    with_context = Stores(Environment())
    try:
        from pipelines import artifacts

        frozen = artifacts.latest(with_context.catalog, "desk", "training_set")
    finally:
        with_context.close()
    rows = [*read_split(frozen, "train"), *read_split(frozen, "validation"), *read_split(frozen, "test")]
    assert len(rows) == len(THINGS)
    for row in rows:
        assert row.context is not None
        assert row.answer.removesuffix(".") in " ".join(row.context), "the page about the thing is among what was found"
    assert "10 added" in desk.metadata("desk", "training_set")["changes"]


def test_a_quarantined_example_is_released_by_a_job_and_stays_so(desk: Desk) -> None:
    short = {"prompt": "?", "completion": "No."}
    rows = [{"prompt": f"How heavy is the {thing}?", "completion": f"The {thing} is light."} for thing in THINGS]
    desk.write([*rows, short])
    first = desk.run("desk_labels")
    assert first.success, failures(first)
    figures = desk.metadata("desk", "labelled_examples")
    assert (figures["dagster/row_count"], figures["quarantined"]) == (10, 1)
    assert Path(figures["data_docs"].removeprefix("file://")).is_file()

    stores = Stores(Environment())
    held = listed(stores.catalog, "desk")
    stores.close()
    config = {"ops": {"desk_decide_on_examples": {"config": {"release": [held[0].example_id[:10]], "author": "Ada"}}}}
    decided = desk.run("desk_review_examples", config=config)
    assert decided.success, failures(decided)
    for _ in range(2):
        assert desk.run("desk_labels").success
        figures = desk.metadata("desk", "labelled_examples")
        assert (figures["dagster/row_count"], figures["quarantined"], figures["released"]) == (11, 0, 1)

    nothing = desk.run("desk_review_examples")
    assert "nothing to decide" in failures(nothing)


def test_chats_become_a_published_model_that_writes_as_it_was_judged(
    desk: Desk, ollama: Ollama, tmp_path: Path
) -> None:
    """T12: what is trained is prompted as what is evaluated, and as what is published."""
    base = make_chat_base(tmp_path / "base")
    desk.release = {"ollama": {"url": ollama.url}}
    desk.change(
        base_model=str(base),
        epochs=4,
        batch_size=8,
        learning_rate=5e-3,
        maximum_tokens=256,
        lora={"rank": 4, "dropout": 0},
    )
    desk.write(
        [
            {"prompt": question.format(thing), "completion": answer_of(thing), "context": [], "group": question}
            for question in QUESTIONS
            for thing in COLOURS
        ]
    )
    result = desk.run("desk_retrain")
    assert result.success, failures(result)
    adapter, report = desk.metadata("desk", "lora_adapter"), desk.metadata("desk", "evaluation_report")
    assert adapter["manifest"]["task"] == "generate"
    assert report["candidate_token_f1"] > report["base_token_f1"]
    assert "data:image/png" in report["metrics"]
    assert "question" in report["samples"]
    gguf, published = desk.metadata("desk", "gguf_model"), desk.metadata("desk", "published_model")
    assert checks(result)["parity"]
    assert gguf["F16_answers_equal"] == 1.0
    assert "data:image/png" in gguf["size_against_agreement"]
    assert published["version"] == "v1"
    assert "desk-Q8_0.gguf" in published["model_card"]
    assert published["ollama"] == "desk:v1"
