from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact, latest, load
from pipelines.errors import ArtifactError, ExamplesError
from pipelines.labels.difference import diff
from pipelines.labels.examples import SPLITS, Example, read_split
from pipelines.labels.snapshot import freeze_training_set

Letters = Callable[..., list[dict[str, Any]]]


def freeze(inbox: Any, folder: str = "training_set", said: list[str] | None = None, **settings: Any) -> Artifact:
    return freeze_training_set(
        inbox.settings.model_copy(update=settings),
        use_case="mail",
        catalog=inbox.catalog,
        folder=inbox.base / folder,
        progress=(said if said is not None else []).append,
    )


def written(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_training_set_holds_every_accepted_example_in_its_split(inbox: Any, letters: Letters) -> None:
    inbox.write("a.jsonl", *letters(60), "{broken")
    inbox.take_in()
    artifact = freeze(inbox)
    assert sorted(path.name for path in artifact.path.iterdir()) == [
        "manifest.json",
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    stored = {key: split for key, split, state in inbox.stored("example_id", "split", "state") if state == "accepted"}
    assert {example.id: split for split in SPLITS for example in read_split(artifact, split)} == stored
    manifest = artifact.manifest
    assert artifact.path.name == manifest["fingerprint"]
    assert (manifest["kind"], manifest["schema"], manifest["use_case"]) == ("training_set", 2, "mail")
    assert (manifest["categories"], manifest["multi_label"]) == (["billing", "shipping"], False)
    assert manifest["rows"] == {split: list(stored.values()).count(split) for split in SPLITS}
    assert sum(manifest["by_category"]["train"].values()) == manifest["rows"]["train"]
    assert set(manifest["files"]) == {"train.jsonl", "validation.jsonl", "test.jsonl"}


def test_a_line_says_what_training_needs_and_lines_are_sorted(inbox: Any, letters: Letters) -> None:
    inbox.write("a.jsonl", *letters(60))
    inbox.take_in()
    lines = [json.loads(line) for line in (freeze(inbox).path / "train.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == sorted(line["id"] for line in lines)
    assert list(lines[0]) == ["id", "text", "labels", "group", "origin"]
    assert lines[0]["labels"] in (["billing"], ["shipping"])


def test_the_same_examples_give_the_same_training_set_and_nothing_is_written_again(
    inbox: Any, letters: Letters
) -> None:
    inbox.write("a.jsonl", *letters(60))
    inbox.take_in()
    first = freeze(inbox)
    before = written(inbox.base / "training_set")
    said: list[str] = []
    again = freeze(inbox, said=said)
    assert again.manifest == first.manifest
    assert written(inbox.base / "training_set") == before
    assert said == [f"unchanged: {first.fingerprint[:12]}"]
    assert latest(inbox.catalog, "mail", "training_set").path == first.path


def test_the_order_in_which_examples_came_does_not_matter(inbox: Any, letters: Letters, tmp_path: Path) -> None:
    from pipelines.catalog import open_catalog

    inbox.write("a.jsonl", *letters(60))
    inbox.take_in()
    first = freeze(inbox)
    inbox.write("a.jsonl", *reversed(letters(60)))
    inbox.catalog = open_catalog(f"sqlite:///{tmp_path / 'other.db'}")
    inbox.take_in()
    assert freeze(inbox, folder="other").fingerprint == first.fingerprint
    inbox.catalog.dispose()


def test_a_new_training_set_replays_all_that_came_before(inbox: Any, letters: Letters) -> None:
    """T14."""
    inbox.write("a.jsonl", *letters(60))
    inbox.take_in()
    first = freeze(inbox)
    inbox.write("b.jsonl", *letters(40, start=60), {"text": "Which meter is mine?", "label": "meters", "group": "x"})
    inbox.take_in()
    second = freeze(inbox)
    for split in SPLITS:
        assert set(read_split(first, split)) <= set(read_split(second, split))
    change = diff(first, second)
    assert (change.added, change.removed) == (41, 0)
    assert change.added_by_category == {"billing": 20, "meters": 1, "shipping": 20}
    assert diff(second, first).removed_by_category == change.added_by_category
    assert load(first.path).manifest == first.manifest
    assert latest(inbox.catalog, "mail", "training_set").fingerprint == second.fingerprint


def test_going_back_to_earlier_examples_makes_the_earlier_set_the_latest(inbox: Any, letters: Letters) -> None:
    inbox.write("a.jsonl", *letters(60))
    inbox.take_in()
    first = freeze(inbox)
    inbox.write("a.jsonl", *letters(70))
    inbox.take_in()
    assert freeze(inbox).fingerprint != first.fingerprint
    inbox.write("a.jsonl", *letters(60))
    inbox.take_in()
    assert freeze(inbox).fingerprint == first.fingerprint
    assert latest(inbox.catalog, "mail", "training_set").fingerprint == first.fingerprint


def test_an_altered_training_set_is_refused_and_frozen_anew(inbox: Any, letters: Letters) -> None:
    """T8."""
    inbox.write("a.jsonl", *letters(60))
    inbox.take_in()
    artifact = freeze(inbox)
    kept = (artifact.path / "train.jsonl").read_text()
    (artifact.path / "train.jsonl").write_text("")
    with pytest.raises(ArtifactError, match=r"differs from its manifest in train.jsonl"):
        latest(inbox.catalog, "mail", "training_set")
    freeze(inbox)
    assert (artifact.path / "train.jsonl").read_text() == kept


def test_a_category_without_training_examples_is_reported(inbox: Any, letters: Letters) -> None:
    rare = {"text": "Which meter is mine?", "label": "meters", "split": "test"}
    inbox.write("a.jsonl", *letters(60), rare)
    inbox.take_in()
    said: list[str] = []
    artifact = freeze(inbox, said=said)
    assert artifact.manifest["not_in_train"] == ["meters"]
    assert said[0] == "no training example of meters: the model cannot learn it from this set"
    declared = freeze(inbox, categories=("shipping", "meters", "billing", "voucher"))
    assert declared.manifest["categories"] == ["billing", "meters", "shipping", "voucher"]
    assert declared.manifest["not_in_train"] == ["meters", "voucher"]
    assert declared.fingerprint != artifact.fingerprint


@pytest.mark.parametrize(
    ("split", "labels", "message"),
    [
        ("test", ("a", "b"), r"no accepted example to train on \(0 train, 0 validation, 4 test\)"),
        ("train", ("a", "b"), r"no accepted example to evaluate on \(4 train, 0 validation, 0 test\)"),
        (None, ("a", "a"), "training examples of a only; at least two"),
    ],
)
def test_examples_that_cannot_make_a_training_set_are_refused(
    inbox: Any, split: str | None, labels: tuple[str, ...], message: str
) -> None:
    splits = [split] * 4 if split else ["train", "train", "test", "test"]
    texts = ("one of four", "two of four", "three of four", "four of four")
    every = [
        {"text": text, "label": label, "split": own} for text, label, own in zip(texts, labels * 2, splits, strict=True)
    ]
    inbox.write("a.jsonl", *every)
    inbox.take_in()
    with pytest.raises(ExamplesError, match=message):
        freeze(inbox)
    assert not (inbox.base / "training_set").exists()


def test_texts_of_any_script_and_labels_of_any_number_come_back_as_they_were(inbox: Any) -> None:
    texts = ("größer\u2028als  nötig", "日本語のテキストです。", "one\r\ntwo\nthree", "👩‍👩‍👧 family")
    every = [
        {"text": text, "label": labels, "split": split, "origin": "rule"}
        for text, labels, split in zip(
            texts, (["b", "a"], [], ["a"], ["b"]), ("train", "train", "train", "test"), strict=True
        )
    ]
    inbox.write("a.jsonl", *every)
    inbox.take_in(multi_label=True)
    artifact = freeze(inbox, multi_label=True)
    found = {example.text: example for split in SPLITS for example in read_split(artifact, split)}
    assert set(found) == set(texts)
    assert [found[text].labels for text in texts] == [("a", "b"), (), ("a",), ("b",)]
    assert isinstance(found[texts[0]], Example)
    assert found[texts[0]].origin == "rule"
