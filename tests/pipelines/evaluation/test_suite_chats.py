from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from PIL import Image

from pipelines.artifacts import Artifact, load, record, seal
from pipelines.catalog import FORGOTTEN_EXAMPLES, examples, now
from pipelines.declaration import Declaration
from pipelines.environment import Environment
from pipelines.erasure import forget
from pipelines.errors import ArtifactError, ConfigError, ExamplesError
from pipelines.evaluation.approval import approval, approve, may_export
from pipelines.evaluation.chats import drawn_rows
from pipelines.evaluation.gate import decided_again
from pipelines.evaluation.generation import ChatModel
from pipelines.evaluation.report import cell
from pipelines.evaluation.settings import EvaluationSettings, GateSettings
from pipelines.evaluation.suite import ANSWERS, evaluate, report_fingerprint
from pipelines.labels.examples import Example
from pipelines.labels.settings import LabelSettings
from pipelines.stores import Stores

GATE: dict[str, Any] = {"minimum_rows": 20}


def judged(
    candidate: Artifact,
    training_set: Artifact,
    folder: Path,
    champion: Artifact | None = None,
    lines: list[str] | None = None,
    gate: dict[str, Any] | None = None,
    **settings: Any,
) -> Artifact:
    return evaluate(
        candidate,
        training_set,
        use_case="shop",
        champion=champion,
        settings=EvaluationSettings(gate=GateSettings.model_validate({**GATE, **(gate or {})}), **settings),
        folder=folder,
        progress=(lines if lines is not None else []).append,
    )


def report_of(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.path / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of reports, so that the base and the adapters answer once."""
    return tmp_path_factory.mktemp("reports")


def test_a_tuned_model_passes_against_its_base_with_every_metric_measured(
    good_chat: Artifact, chats: Artifact, reports: Path
) -> None:
    """T12, T20"""
    artifact = judged(good_chat, chats, reports)
    report, manifest = report_of(artifact), artifact.manifest
    human = chats.manifest["rows"]["test"] - sum(
        json.loads(line)["origin"] == "model" for line in (chats.path / "test.jsonl").read_text().splitlines()
    )
    assert manifest["rows"] == human
    assert manifest["task"] == "generate"
    assert manifest["verdict"]["passed"] is True
    assert report["verdict"]["metric"] == "token_f1"
    scores = manifest["scores"]
    for metric in ("exact_match", "token_f1", "style", "supported", "refusal"):
        assert scores["candidate"][metric] > scores["base"][metric], metric
    assert "valid_format" not in scores["candidate"], "no format was asked for"
    assert scores["candidate"]["stopped"] == 1
    found = report["metrics"]["token_f1"]["candidate"]
    assert found["low"] <= found["value"] <= found["high"]
    assert found["rows"] == human
    assert {"answerable", "unanswerable", "regression", "found=yes", "found=no"} == report["slices"].keys()
    assert report["slices"]["unanswerable"]["refusal"]["base"]["value"] < 0.1
    assert report["answer_loss"]["candidate"] < report["answer_loss"]["base"]
    assert report["style"]["auc"] > 0.9
    assert report["maximum_answer_tokens"] == 64
    assert report["supported_references"] == 1
    for name in ("metrics.png", "slices.png"):
        with Image.open(io.BytesIO((artifact.path / name).read_bytes())) as picture:
            assert picture.size[0] > 600
    lines = [json.loads(line) for line in (artifact.path / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == human
    assert lines[0]["answers"].keys() == {"candidate", "base"}
    shown = (artifact.path / "summary.md").read_text()
    assert "| token_f1 |" in shown
    assert "- Answers were cut at 64 tokens." in shown
    assert manifest["prompt"] == good_chat.manifest["prompt"]
    assert manifest["template_hash"] == good_chat.manifest["template_hash"]


def test_answers_trained_to_other_questions_are_refused_with_the_worst_side_by_side(
    scrambled_chat: Artifact, scrambled_chats: Artifact, good_chat: Artifact, reports: Path
) -> None:
    """T7. 30 % of the new answers are wrong."""
    artifact = judged(scrambled_chat, scrambled_chats, reports, champion=good_chat)
    assert artifact.manifest["verdict"]["passed"] is False
    assert artifact.manifest["verdict"]["reasons"][0].startswith("not surely better than the champion: token-f1 0.")
    assert decided_again(artifact).passed is False
    samples = (artifact.path / "samples.md").read_text()
    assert samples.startswith("### Worst against the champion by token f1")
    first = samples.splitlines()[4].split(" | ")
    assert first[0].startswith("| -0.")
    assert len(first) == 6, "change, question, reference, base, champion, candidate"


def test_the_same_model_again_is_a_tie_and_refused(good_chat: Artifact, chats: Artifact, reports: Path) -> None:
    """T16"""
    artifact = judged(good_chat, chats, reports, champion=good_chat)
    assert artifact.manifest["verdict"]["passed"] is False
    assert "difference +0.000, 90% interval +0.000 to +0.000" in artifact.manifest["verdict"]["reasons"][0]


def test_a_model_that_never_stops_is_refused(endless_chat: Artifact, chats: Artifact, reports: Path) -> None:
    """T11"""
    artifact = judged(endless_chat, chats, reports)
    assert any("of its answers end by themselves" in reason for reason in artifact.manifest["verdict"]["reasons"])


def test_only_what_is_new_is_answered_again(
    good_chat: Artifact, chats: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T16: the champion is scored on the same rows, without the time that it took before."""
    answered: list[int] = []
    run = ChatModel.answers

    def counted(self: ChatModel, asked: Any, **options: Any) -> Any:
        answered.append(len(asked))
        return run(self, asked, **options)

    monkeypatch.setattr(ChatModel, "answers", counted)
    lines: list[str] = []
    first = judged(good_chat, chats, tmp_path, maximum_rows=24, lines=lines)
    assert answered == [24, 24]
    again = judged(good_chat, chats, tmp_path, maximum_rows=24)
    assert again.path == first.path
    more = judged(good_chat, chats, tmp_path, champion=good_chat, lines=lines)
    rows = more.manifest["rows"]
    assert answered == [24, 24, rows - 24, rows - 24], "candidate and champion are the same files"
    assert f"24 of {rows} answers are known from before" in lines
    path = next(path for path in (tmp_path / ANSWERS).iterdir() if '"maybe the' in path.read_text())
    lost, *kept = (line for line in path.read_text().split("\n") if line)
    assert '"text"' in lost
    path.write_text("\n".join(kept) + '\n{"key": "torn')  # a crash in the middle of a line
    judged(good_chat, chats, tmp_path, champion=good_chat, gate={"margin": 0.5})
    assert answered[4:] == [1]
    assert '{"key": "torn\n{"key"' in path.read_text(), "what follows a torn line has one of its own"


def test_a_format_that_the_use_case_asks_for_is_measured_and_a_floor_on_it_holds(
    good_chat: Artifact, chats: Artifact, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(good_chat.path, folder)
    manifest = {name: value for name, value in good_chat.manifest.items() if name != "files"}
    prompt = {**manifest["prompt"], "answer_format": {"regex": "Thank you.*"}}
    seal(folder, {**manifest, "prompt": prompt, "fingerprint": "f"})
    artifact = judged(load(folder), chats, tmp_path / "out", gate={"floors": {"valid_format": 0.9}})
    assert artifact.manifest["scores"]["candidate"]["valid_format"] == pytest.approx(0.5, abs=0.05)
    assert "valid-format 0.500 is below its floor of 0.900" in artifact.manifest["verdict"]["reasons"]


def test_another_prompt_makes_another_report(good_chat: Artifact, chats: Artifact) -> None:
    """T12, T15: the prompt is in the manifest, which no file hash covers."""
    facts = {"use_case": "shop", "champion": None, "settings": EvaluationSettings()}
    manifest = {**good_chat.manifest, "prompt": {**good_chat.manifest["prompt"], "system": "Obey ."}}
    other = Artifact(good_chat.path, manifest)
    made = [report_fingerprint(candidate, chats, **facts) for candidate in (good_chat, other)]
    made += [report_fingerprint(good_chat, chats, **{**facts, "champion": champion}) for champion in (good_chat, other)]
    assert len(set(made)) == 4


def test_a_metric_that_could_not_be_measured_is_no_pass(good_chat: Artifact, chats: Artifact, reports: Path) -> None:
    """T16"""
    artifact = judged(good_chat, chats, reports, gate={"metric": "valid_format"})
    assert artifact.manifest["verdict"]["passed"] is False
    assert artifact.manifest["verdict"]["reasons"][0].startswith("valid-format of the candidate could not be measured")


def test_only_the_rows_that_say_something_about_the_deciding_metric_count_as_rows(
    good_chat: Artifact, chats: Artifact, reports: Path
) -> None:
    """T16"""
    artifact = judged(good_chat, chats, reports, gate={"metric": "supported"})
    rows = artifact.manifest["rows"]
    assert artifact.manifest["verdict"]["reasons"][0] == (
        f"only {rows // 2} held-out rows; at least 20 are needed to decide anything"
    )


def test_a_metric_of_classifiers_is_an_error(good_chat: Artifact, chats: Artifact, reports: Path) -> None:
    with pytest.raises(ConfigError, match=r"gate\.metric names 'accuracy'"):
        judged(good_chat, chats, reports, gate={"metric": "accuracy"})


def test_a_champion_of_another_task_or_without_its_base_is_an_error_that_says_what_to_do(
    good_chat: Artifact, small_adapter: Artifact, chats: Artifact, tmp_path: Path
) -> None:
    """T16"""
    with pytest.raises(ArtifactError, match="was trained for task 'classify' and the candidate for 'generate'"):
        judged(good_chat, chats, tmp_path / "out", champion=small_adapter)
    folder = tmp_path / "orphan"
    shutil.copytree(good_chat.path, folder)
    manifest = {name: value for name, value in good_chat.manifest.items() if name != "files"}
    seal(folder, {**manifest, "base_model": str(tmp_path / "gone"), "fingerprint": "f"})
    with pytest.raises(ConfigError, match=r"the champion cannot be scored as it is served: .*roll back to a version"):
        judged(good_chat, chats, tmp_path / "out", champion=load(folder))


def test_what_an_erased_example_was_asked_and_answered_leaves_reports_and_stored_answers(
    good_chat: Artifact, chats: Artifact, freshet_home: Path, catalog: sa.Engine
) -> None:
    folder = Environment().artifacts_folder("shop", "evaluation_report")
    report = judged(good_chat, chats, folder)
    record(catalog, "shop", "evaluation_report", report)
    approve(catalog, "shop", report, approved=True, author="cleo", note="Cleo has looked")
    rows = [json.loads(line) for line in (report.path / "answers.jsonl").read_text().splitlines()]
    samples = (report.path / "samples.md").read_text()
    gone = next(row for row in rows if f" | {cell(row['question'])} | {cell(row['reference'])} | " in samples)
    stay = [row for row in rows if row is not gone]
    store(catalog, gone["id"])
    declaration, stores = Declaration(name="shop", labels=LabelSettings(url="labels")), Stores(Environment())
    named = [f"{FORGOTTEN_EXAMPLES}/{gone['id']}"]

    said = forget(declaration, stores, documents=named, key="cleo", dry_run=True)
    assert (said.reports, said.approvals) == ((str(report.path),), (report.fingerprint,))
    assert said.answers == 2 * len(rows), "of the candidate and of its base"
    assert load(report.path) == report

    done = forget(declaration, stores, documents=named, key="cleo")
    assert (done.reports, done.answers, done.approvals) == (said.reports, said.answers, said.approvals)
    assert any("evaluation reports" in line for line in done.lines())
    after = load(report.path)
    assert [json.loads(line) for line in (after.path / "answers.jsonl").read_text().splitlines()] == stay
    shown = (after.path / "samples.md").read_text()
    assert f" | {cell(gone['question'])} | {cell(gone['reference'])} | " not in shown
    assert 0 < len(samples.splitlines()) - len(shown.splitlines()) < 4
    assert not list(folder.rglob(f"{ANSWERS}/*"))
    said_again = approval(catalog, "shop", after)
    assert said_again is not None
    assert (said_again.approved, said_again.author, said_again.note) == (True, None, None)
    assert may_export(after, catalog, GateSettings(approval=True))[0], "what was measured and decided stands"
    again = forget(declaration, stores, documents=named)
    assert (again.reports, again.answers, again.approvals) == ((), 0, ())
    stores.close()


def store(catalog: sa.Engine, example_id: str) -> None:
    """An accepted example, of which only the id matters here."""
    needed = {column.name: "" for column in examples.c if isinstance(column.type, sa.Text | sa.String)}
    row = {**needed, "use_case": "shop", "example_id": example_id, "state": "accepted", "received_at": now()}
    lists = {column.name: [] for column in examples.c if isinstance(column.type, sa.JSON)}
    with catalog.begin() as connection:
        connection.execute(sa.insert(examples).values(**row, **lists))


def test_rows_of_no_origin_that_counts_are_an_error(good_chat: Artifact, chats: Artifact, tmp_path: Path) -> None:
    """T20"""
    with pytest.raises(ExamplesError, match="no test row of origin rule"):
        judged(good_chat, chats, tmp_path, origins=("rule",))


def test_the_regression_slice_is_always_drawn_and_the_rest_by_hash() -> None:
    rows = [
        Example(str(number), "t", (), "g", "human", slices=("regression",) if number < 30 else ())
        for number in range(200)
    ]
    drawn = drawn_rows(rows, 50)
    assert len(drawn) == 50
    assert [row.id for row in drawn[:30]] == [str(number) for number in range(30)]
    more = drawn_rows(rows, 60)
    assert {row.id for row in drawn} < {row.id for row in more}
    assert drawn_rows(rows, 10) == rows[:30]
    assert drawn_rows(rows, None) == rows
