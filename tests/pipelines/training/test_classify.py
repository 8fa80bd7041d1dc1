from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from pipelines.artifacts import MANIFEST, Artifact, load, seal
from pipelines.errors import ArtifactError, ConfigError, ExamplesError, LockedError
from pipelines.evaluation.classifier import base_model, load_classifier, pooling_of
from pipelines.labels.examples import read_split
from pipelines.models import BUNDLED, model_folder
from pipelines.training.classify import AlikeLengths, loss_function
from pipelines.training.dataset import indicators, rows_to_fit, training_set_at
from pipelines.training.job import TrainingJob, adapter_fingerprint, train
from pipelines.training.progress import Progress, read_progress
from pipelines.training.settings import ClassifySettings, LoraSettings
from tests.pipelines.chat_base import make_chat_base

QUICK = ClassifySettings(epochs=3, batch_size=16, maximum_tokens=48, lora=LoraSettings(rank=4, alpha=8))


def job_of(training_set: Artifact, output: Path, settings: ClassifySettings = QUICK) -> TrainingJob:
    return TrainingJob(use_case="shop", training_set=training_set.path, output=output, settings=settings)


def ignore(_: Progress) -> None: ...


def altered(artifact: Artifact, folder: Path, **facts: Any) -> Artifact:
    """A copy whose manifest says something else, sealed again."""
    shutil.copytree(artifact.path, folder)
    (folder / MANIFEST).unlink()
    seal(folder, {**{name: value for name, value in artifact.manifest.items() if name != "files"}, **facts})
    return load(folder)


def test_the_manifest_says_what_was_really_trained(small_set: Artifact, small_adapter: Artifact) -> None:
    """T9"""
    from transformers import AutoTokenizer

    rows = read_split(small_set, "train")
    tokenizer = AutoTokenizer.from_pretrained(model_folder(BUNDLED, None))
    tokens = sum(len(ids) for ids in tokenizer([row.text for row in rows])["input_ids"])
    effective = small_adapter.manifest["effective"]
    assert effective["rows"] == len(rows) == small_set.manifest["rows"]["train"]
    assert effective["validation_rows"] == small_set.manifest["rows"]["validation"]
    assert effective["epochs"] == 3
    assert effective["steps"] == 3 * math.ceil(len(rows) / 16)
    assert effective["tokens"] == 3 * tokens
    assert effective["rows_cut"] == 0


def test_the_manifest_names_everything_that_the_adapter_was_made_from(
    small_set: Artifact, small_adapter: Artifact
) -> None:
    manifest = small_adapter.manifest
    assert manifest["kind"] == "lora_adapter"
    assert manifest["training_set"] == small_set.fingerprint
    assert manifest["base_model"] == BUNDLED
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= manifest["base_files"].keys()
    assert manifest["categories"] == ["delivery", "refund", "repair"]
    assert manifest["settings"] == QUICK.model_dump(mode="json")
    assert manifest["thresholds"] == {}
    assert manifest["pooling"] == "mean"
    least = -(0.9333 * math.log(0.9333) + 2 * 0.0333 * math.log(0.0333))  # of three categories, smoothed by 0.1
    assert manifest["loss"]["last"] == pytest.approx(least, abs=0.1)
    assert manifest["validation"]["rows"] == len(read_split(small_set, "validation"))
    assert {"versions", "device", "precision", "threads", "seconds"} <= manifest.keys()


def test_the_adapter_is_a_standard_one_and_holds_no_path_of_this_machine(small_adapter: Artifact) -> None:
    names = {path.name for path in small_adapter.path.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "progress.jsonl", MANIFEST} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))}
    config = json.loads((small_adapter.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BUNDLED
    assert config["r"] == 4
    places = (str(Path.cwd()), str(Path.home()) + "/", str(model_folder(BUNDLED, None)))
    for path in small_adapter.path.glob("*.json*"):
        text = path.read_text()
        assert not [place for place in places if place in text], path.name


def test_a_second_run_with_equal_inputs_trains_nothing(small_set: Artifact, small_adapter: Artifact) -> None:
    points: list[Progress] = []
    before = {path.name: path.stat().st_mtime_ns for path in small_adapter.path.iterdir()}
    again = train(job_of(small_set, small_adapter.path.parent), progress=points.append)
    assert again == small_adapter
    assert points == []
    assert before == {path.name: path.stat().st_mtime_ns for path in again.path.iterdir()}


def test_base_training_set_and_settings_are_part_of_the_fingerprint(small_set: Artifact, multi_set: Artifact) -> None:
    job, base = job_of(small_set, Path("out")), {"model.safetensors": "a"}
    other = job.model_copy(update={"settings": QUICK.model_copy(update={"seed": 18})})
    keys = [
        adapter_fingerprint(job, small_set, base),
        adapter_fingerprint(job, multi_set, base),
        adapter_fingerprint(other, small_set, base),
        adapter_fingerprint(job, small_set, {"model.safetensors": "b"}),
    ]
    assert len(set(keys)) == 4
    assert adapter_fingerprint(job_of(small_set, Path("elsewhere")), small_set, base) == keys[0]


def test_the_curve_reaches_the_last_step_and_its_validation_is_the_adapter_s(small_adapter: Artifact) -> None:
    points = read_progress(small_adapter.path / "progress.jsonl")
    effective = small_adapter.manifest["effective"]
    assert points[-1].step == points[-1].steps == effective["steps"]
    assert points[-1].tokens == effective["tokens"]
    validated = [point for point in points if point.validation_score is not None]
    assert [point.epoch for point in validated] == [1, 2, 3]
    best = next(point for point in validated if point.epoch == effective["best_epoch"])
    assert best.validation_score == max(point.validation_score or 0 for point in validated)
    assert best.validation_score == pytest.approx(small_adapter.manifest["validation"]["accuracy"], abs=0.1)


def test_a_refit_takes_validation_rows_but_no_copy_of_a_test_row(small_set: Artifact, tmp_path: Path) -> None:
    """T1"""
    folder = tmp_path / "set"
    shutil.copytree(small_set.path, folder)
    first, *others = map(json.loads, (folder / "validation.jsonl").read_text().splitlines())
    first["text"] = read_split(small_set, "test")[0].text.upper() + " !"
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    (folder / MANIFEST).unlink()
    seal(folder, {name: value for name, value in small_set.manifest.items() if name != "files"})
    copied = load(folder)
    rows, validation_rows = rows_to_fit(copied, refit=False)
    assert (rows, len(validation_rows)) == (read_split(small_set, "train"), len(others) + 1)
    assert rows_to_fit(copied, refit=True) == ([*rows, *(row for row in validation_rows if row.id != first["id"])], [])


def test_a_finished_adapter_that_was_altered_is_not_accepted(small_adapter: Artifact, tmp_path: Path) -> None:
    """T8"""
    folder = tmp_path / "copy"
    shutil.copytree(small_adapter.path, folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors"):
        load(folder)


def test_training_that_is_ended_half_way_leaves_nothing(small_set: Artifact, tmp_path: Path) -> None:
    """T8"""

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job_of(small_set, tmp_path / "out"), progress=stop)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".training.lock", ".work"}


def test_the_arithmetic_of_the_process_is_as_before(small_set: Artifact, tmp_path: Path) -> None:
    """Denormals are flushed to zero while it trains, and only then."""

    def end(_: Progress) -> None:
        assert math.ldexp(1.0, -1060) * 0.5 == 0
        raise RuntimeError("seen")

    with pytest.raises(RuntimeError, match="seen"):
        train(job_of(small_set, tmp_path), progress=end)
    assert math.ldexp(1.0, -1060) * 0.5 > 0


def test_two_trainings_of_one_home_are_kept_apart(small_set: Artifact, tmp_path: Path) -> None:
    """T5"""
    with FileLock(tmp_path / ".training.lock"), pytest.raises(LockedError, match="another training holds"):
        train(job_of(small_set, tmp_path), progress=ignore)


def test_an_adapter_does_not_load_on_another_base(small_adapter: Artifact, tmp_path: Path) -> None:
    """G5"""
    files = {**small_adapter.manifest["base_files"], "model.safetensors": "0" * 64}
    other = altered(small_adapter, tmp_path / "other", base_files=files)
    with pytest.raises(ArtifactError, match=r"another 'all-MiniLM-L6-v2': model\.safetensors"):
        load_classifier(other)


def test_an_adapter_tensor_without_a_place_in_the_model_is_refused(small_adapter: Artifact, tmp_path: Path) -> None:
    """G3"""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other"
    shutil.copytree(small_adapter.path, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.bert.encoder.layer.9.output.dense.lora_A.weight"] = torch.ones(4, 1536)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    other = altered(Artifact(folder, small_adapter.manifest), tmp_path / "sealed")
    with pytest.raises(ArtifactError, match=r"layer\.9"):
        load_classifier(other)


def test_loading_twice_gives_equal_logits_and_merging_changes_every_target(small_adapter: Artifact) -> None:
    """G1, T19"""
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification

    texts = ["Where is the parcel with my umbrella?", "I want my money back.", "It broke."]
    first, second = load_classifier(small_adapter), load_classifier(small_adapter)
    logits = first.logits(texts)
    assert logits.dtype == np.float32
    assert logits.shape == (3, 3)
    assert np.array_equal(logits, second.logits(texts))

    folder = model_folder(BUNDLED, None)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    merged = second.merged()
    before, after = base.state_dict(), merged.state_dict()
    tensors = json.loads((small_adapter.path / "adapter_config.json").read_text())["target_modules"]
    targets = [name for name in after if name.endswith(".weight") and name.rsplit(".", 2)[-2] in tensors]
    targets = [name for name in targets if ".encoder." in name and name in before and after[name].dim() == 2]
    assert len(targets) == 6 * 6  # query, key, value and three dense layers in each of six
    heads = ["bert.pooler.dense.weight", "classifier.weight", "classifier.bias"]
    unchanged = [name for name in (*targets, *heads) if torch.equal(before[name], after[name])]
    assert unchanged == []

    second.model = merged
    assert np.allclose(second.logits(texts), logits, atol=1e-4)
    first.model = base
    assert not np.allclose(first.logits(texts), logits, atol=1e-2)


def test_a_base_that_was_trained_to_be_read_by_its_mean_shows_the_mean_to_the_head(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    folder = model_folder(BUNDLED, None)
    assert pooling_of(folder) == "mean"
    assert pooling_of(make_chat_base(tmp_path / "decoder")) == "first"
    model, missing = base_model(folder, ["a", "b"], multi_label=False, pooling="mean")
    assert {name for name in missing if ".layer." in name} == {
        name
        for name, module in model.named_modules()
        if name.startswith("bert.encoder.layer.6.") and isinstance(module, torch.nn.Linear | torch.nn.LayerNorm)
    }
    batch = AutoTokenizer.from_pretrained(folder)(
        ["short", "a longer one, which is not padded"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        *_, before, after = model.eval().bert(**batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"].unsqueeze(-1)
    seen = before[:, 0] + 4 * (before * mask).sum(dim=1) / mask.sum(dim=1)
    assert torch.allclose(after[:, 0], 0.3 * torch.nn.functional.layer_norm(seen, seen.shape[-1:]), atol=1e-4)


def test_the_layer_that_averages_is_stored_with_the_adapter_and_not_trained(small_adapter: Artifact) -> None:
    import torch
    from safetensors.torch import load_file

    start, _ = base_model(model_folder(BUNDLED, None), ["a", "b"], multi_label=False, pooling="mean")
    stored, place = load_file(small_adapter.path / "adapter_model.safetensors"), ".encoder.layer.6."
    whole = {f"base_model.model.{name}": value for name, value in start.state_dict().items() if place in name}
    assert {name for name in stored if place in name} == whole.keys()
    assert all(torch.equal(stored[name], value) for name, value in whole.items())
    assert small_adapter.manifest["effective"]["trained_parameters"] < 500_000


def test_texts_keep_their_order_whatever_their_length(small_set: Artifact, small_adapter: Artifact) -> None:
    import numpy as np

    classifier = load_classifier(small_adapter)
    texts = [row.text for row in read_split(small_set, "test")]
    together = classifier.logits(texts, batch_size=4)
    one_by_one = np.concatenate([classifier.logits([text]) for text in texts])
    assert np.allclose(together, one_by_one, atol=1e-4)
    assert classifier.logits([]).shape == (0, 3)
    assert np.allclose(classifier.probabilities(texts).sum(axis=1), 1, atol=1e-5)


def test_the_adapter_learned_its_categories(small_set: Artifact, small_adapter: Artifact) -> None:
    rows = read_split(small_set, "test")
    predicted = load_classifier(small_adapter).predict([row.text for row in rows])
    assert sum(list(row.labels) == found for row, found in zip(rows, predicted, strict=True)) >= 0.85 * len(rows)


def test_several_labels_a_text(multi_set: Artifact, multi_adapter: Artifact) -> None:
    from pipelines.evaluation.metrics import score

    rows, categories = read_split(multi_set, "test"), multi_set.manifest["categories"]
    thresholds = multi_adapter.manifest["thresholds"]
    assert thresholds.keys() == set(categories)
    assert all(0 < threshold < 1 for threshold in thresholds.values())
    predicted = load_classifier(multi_adapter).predict([row.text for row in rows])
    assert {len(found) for found in predicted} >= {1, 2}
    truth = indicators([row.labels for row in rows], categories)
    assert score(truth, indicators(predicted, categories), "micro_f1") >= 0.8


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("")
    seal(folder, {"fingerprint": "f", "kind": "training_set", "categories": ["a", "b"], "multi_label": False})
    with pytest.raises(ExamplesError, match="0 training rows in 2 categories"):
        train(job_of(load(folder), tmp_path / "out"), progress=ignore)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1", "text": "t", "labels": ["c"], "group": "g", "origin": "human"}', "'c' is not a category"),
        ('{"id": "1", "text": "t", "labels": [], "group": "g", "origin": "human"}', "multi_label is off"),
        ('{"id": "1", "labels": ["a"], "group": "g", "origin": "human"}', "line 1, is no row"),
        ("{", "line 1, is no row"),
    ],
)
def test_a_row_that_does_not_fit_its_manifest_is_an_error(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "train.jsonl").write_text(line + "\n")
    seal(tmp_path, {"fingerprint": "f", "kind": "training_set", "categories": ["a", "b"], "multi_label": False})
    with pytest.raises(ArtifactError, match=message):
        read_split(load(tmp_path), "train")
    with pytest.raises(ArtifactError, match=r"no test\.jsonl"):
        read_split(load(tmp_path), "test")


def test_what_is_no_training_set_is_refused(small_adapter: Artifact, tmp_path: Path) -> None:
    """T13"""
    seal(tmp_path, {"fingerprint": "f"})
    with pytest.raises(ArtifactError, match="no categories, multi_label"):
        training_set_at(tmp_path)
    with pytest.raises(ArtifactError, match="never finished"):
        training_set_at(tmp_path / "none")


def test_layers_that_the_base_does_not_have_are_refused(small_set: Artifact, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"lora": LoraSettings(target_modules=("q_proj",))})
    with pytest.raises(ConfigError, match=r"target_modules \('q_proj',\) do not fit 'all-MiniLM-L6-v2'"):
        train(job_of(small_set, tmp_path, settings), progress=ignore)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [".work"]
    assert list((tmp_path / ".work").iterdir()) == []


def test_batches_hold_alike_lengths_and_every_row_once_in_an_order_of_their_own() -> None:
    import torch

    lengths = [1 + 7 * number % 101 for number in range(103)]
    sampler = AlikeLengths(lengths, 8, seed=1)
    first = list(sampler)
    torch.manual_seed(1)
    assert list(sampler) == first, "whatever was drawn before"
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(103))
    assert first != second
    batches = [[lengths[index] for index in first[at : at + 8]] for at in range(0, 96, 8)]
    assert max(max(batch) - min(batch) for batch in batches) <= 20
    starts = [batch[0] for batch in batches]
    assert starts not in (sorted(starts), sorted(starts, reverse=True))


def test_an_epoch_may_end_before_the_curve_s_second_point(
    small_set: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.training.progress.POINTS_OF_A_CURVE", 1)
    adapter = train(
        job_of(small_set, tmp_path, QUICK.model_copy(update={"epochs": 4.0, "batch_size": 64})), progress=ignore
    )
    steps = [
        point.step for point in read_progress(adapter.path / "progress.jsonl") if point.validation_score is not None
    ]
    assert len(steps) == adapter.manifest["effective"]["steps"] == 4


def test_probabilities_are_calibrated_on_validation_rows_where_there_are_enough(
    small_adapter: Artifact, tmp_path: Path
) -> None:
    """T18"""
    assert small_adapter.manifest["calibration"] is None, "six validation rows say too little"
    lines = [
        {"id": str(n), "text": f"Where is parcel number {n}?", "labels": ["delivery"], "group": str(n)}
        for n in range(60)
    ]
    lines += [
        {"id": f"r{n}", "text": f"Repay order {n}, please.", "labels": ["refund"], "group": f"r{n}"} for n in range(60)
    ]
    folder = tmp_path / "training_set"
    folder.mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        rows = [json.dumps({**line, "origin": "human"}) for line in (lines if number < 2 else lines[:2])]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    seal(
        folder,
        {"fingerprint": "f" * 64, "kind": "training_set", "categories": ["delivery", "refund"], "multi_label": False},
    )
    adapter = train(
        job_of(load(folder), tmp_path / "out", QUICK.model_copy(update={"abstain_below": 0.9})), progress=ignore
    )
    classifier = load_classifier(adapter)
    assert adapter.manifest["calibration"]["rows"] == 120
    assert classifier.calibration == adapter.manifest["calibration"]
    assert classifier.abstain_below == 0.9
    assert classifier.predict(["Where is parcel number 7?"]) == [["delivery"]]


def test_rare_categories_count_more_when_weights_are_balanced() -> None:
    import torch

    truth = np.zeros((100, 2), dtype=bool)
    truth[:90, 0] = truth[90:, 1] = True
    balanced = ClassifySettings(class_weights="balanced")
    single, several = (loss_function(balanced, truth, multi_label=several) for several in (False, True))
    logits = {"logits": torch.zeros(1, 2)}
    alike = loss_function(ClassifySettings(), truth, multi_label=False)
    assert alike(logits, torch.tensor([1])) == alike(logits, torch.tensor([0]))
    unsmoothed = loss_function(balanced.model_copy(update={"label_smoothing": 0.0}), truth, multi_label=False)
    ratio = unsmoothed(logits, torch.tensor([1])) / unsmoothed(logits, torch.tensor([0]))
    assert float(ratio) == pytest.approx(9.0)
    missed = several(logits, torch.tensor([[0.0, 1.0]]))
    assert float(missed) == pytest.approx(math.log(2) * (1 + 9) / 2, rel=1e-5)
    whole = single({"logits": torch.zeros(4, 2)}, torch.tensor([0, 1, 1, 0]), 4)
    parts = [single({"logits": torch.zeros(2, 2)}, torch.tensor(labels), 4) for labels in ([0, 1], [1, 0])]
    assert float(whole) == pytest.approx(float(sum(parts))), "gradients of parts add up to those of the whole"


def test_a_smoothed_loss_is_least_where_the_model_is_not_quite_sure() -> None:
    import torch

    smoothed, plain = (
        loss_function(ClassifySettings(label_smoothing=share), np.eye(4, dtype=bool), multi_label=False)
        for share in (0.2, 0.0)
    )
    right = torch.tensor([0])
    chances = [torch.tensor([[1 - 3 * rest, rest, rest, rest]]) for rest in (0.05, 1e-6)]  # 0.05: a quarter of 0.2
    losses = [[float(loss({"logits": chance.log()}, right)) for chance in chances] for loss in (smoothed, plain)]
    assert losses[0][0] < losses[0][1]
    assert losses[1][0] > losses[1][1]


def test_a_decoder_classifies_by_its_last_token_and_comes_back_from_disk(small_set: Artifact, tmp_path: Path) -> None:
    """T19"""
    import torch

    base = make_chat_base(tmp_path / "base")
    settings = QUICK.model_copy(update={"base_model": str(base), "learning_rate": 5e-3})
    adapter = train(job_of(small_set, tmp_path / "out", settings), progress=ignore)
    classifier = load_classifier(adapter)
    texts = [row.text for row in read_split(small_set, "test")]
    together, alone = classifier.logits(texts), np.concatenate([classifier.logits([text]) for text in texts])
    assert np.allclose(together, alone, atol=1e-4), "padding is never what is classified"
    assert torch.isfinite(torch.from_numpy(together)).all()
    truth = indicators([row.labels for row in read_split(small_set, "train")], classifier.categories)
    found = indicators(classifier.predict([row.text for row in read_split(small_set, "train")]), classifier.categories)
    assert (truth == found).all(axis=1).mean() > 0.6, "it has learnt something"
