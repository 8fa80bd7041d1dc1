"""Scoring with an exported file."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError
from pipelines.evaluation.classifier import load_classifier
from pipelines.release.classifier import GgufClassifier
from pipelines.release.export import export
from pipelines.release.settings import ReleaseSettings
from tests.pipelines.release.samples import CATEGORIES, SENTENCES, copied, no_progress, write_training_set

TEXTS = [
    sentence.format(subject)
    for sentences in SENTENCES.values()
    for sentence in sentences
    for subject in ("x", "the west entrance, which was opened only last year and is already in need of repair")
]


def file_of(gguf: Artifact, quantisation: str) -> Path:
    return gguf.path / str(gguf.manifest["quantisations"][quantisation]["file"])


def test_llama_cpp_scores_as_transformers_does(gguf: Artifact, adapter: Artifact) -> None:
    """T19: the head, dense and tanh included, survives as far as the quantised file."""
    expected = load_classifier(adapter)
    for quantisation, tolerance in (("F16", 0.01), ("Q8_0", 0.5)):
        classifier = GgufClassifier(file_of(gguf, quantisation))
        scores = classifier.scores(TEXTS)
        assert scores.dtype == np.float32
        assert scores.shape == (len(TEXTS), len(CATEGORIES))
        assert np.abs(scores - expected.logits(TEXTS)).max() < tolerance
        assert classifier.predict(TEXTS) == expected.predict(TEXTS)


def test_a_text_scores_the_same_whatever_it_is_scored_with(gguf: Artifact) -> None:
    classifier = GgufClassifier(file_of(gguf, "Q8_0"))
    together = classifier.scores([*TEXTS, "word " * 500, ""])
    alone = np.concatenate([classifier.scores([text]) for text in reversed([*TEXTS, "word " * 500, ""])])[::-1]
    assert np.array_equal(together, alone)


def test_a_long_text_is_cut_as_in_training(gguf: Artifact, adapter: Artifact) -> None:
    """The end token stays the last one, so the scores are those of transformers, and what follows does not matter."""
    classifier, expected = GgufClassifier(file_of(gguf, "F16")), load_classifier(adapter)
    start = "The invoice must be paid within thirty days, without any exception. " * 3
    long, longer = start * 3, start * 6 + "Report any injury near the canteen!"
    ids = classifier.model.cut(classifier.model.tokens(long))
    assert ids == expected.tokenizer(long, truncation=True, max_length=48)["input_ids"]
    assert len(ids) == classifier.model.maximum_tokens == 48
    assert np.abs(classifier.scores([long]) - expected.logits([long])).max() < 0.01
    assert np.array_equal(classifier.scores([long]), classifier.scores([longer]))


def test_several_labels_are_decided_by_the_thresholds_of_the_manifest(adapter: Artifact, tmp_path: Path) -> None:
    training_set = write_training_set(tmp_path / "training_set", multi_label=True)
    facts = {"training_set": training_set.fingerprint, "multi_label": True}
    several = copied(adapter, tmp_path / "adapter", **facts, thresholds=dict.fromkeys(CATEGORIES, 0.5))
    gguf = export(
        several,
        training_set,
        settings=ReleaseSettings(quantisations=("Q8_0",), serve="Q8_0"),
        folder=tmp_path / "gguf_model",
        progress=no_progress,
    )
    assert list(gguf.manifest["quantisations"]) == ["Q8_0"]
    assert sorted(path.name for path in gguf.path.glob("*.gguf")) == ["notices-Q8_0.gguf"]
    chances = GgufClassifier(file_of(gguf, "Q8_0")).probabilities(TEXTS)
    thresholds = {name: float(np.median(chances[:, index])) for index, name in enumerate(CATEGORIES)}
    moved = copied(gguf, tmp_path / "moved", thresholds=thresholds)
    predicted = GgufClassifier(file_of(moved, "Q8_0")).predict(TEXTS)
    assert predicted == [
        [name for name, value in zip(CATEGORIES, row, strict=True) if value >= thresholds[name]]
        for row in chances.tolist()
    ]
    assert {len(labels) for labels in predicted} != {1}


def test_a_file_that_its_manifest_does_not_know_is_refused(gguf: Artifact, tmp_path: Path) -> None:
    """T8"""
    copy = copied(gguf, tmp_path / "copy")
    path = file_of(copy, "Q8_0")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="differs from what its manifest says"):
        GgufClassifier(path)
    (copy.path / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="both needed"):
        GgufClassifier(path)


def test_a_manifest_of_another_model_is_refused(gguf: Artifact, tmp_path: Path) -> None:
    """G5: the file says which adapter it was made from, and which labels it scores."""
    foreign = copied(gguf, tmp_path / "foreign", adapter="0" * 64)
    with pytest.raises(ArtifactError, match="was made from adapter"):
        GgufClassifier(file_of(foreign, "Q8_0"))
    renamed = copied(gguf, tmp_path / "renamed", categories=list(reversed(CATEGORIES)))
    with pytest.raises(ArtifactError, match="scores the labels"):
        GgufClassifier(file_of(renamed, "Q8_0"))
