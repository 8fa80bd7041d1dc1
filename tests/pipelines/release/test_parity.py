"""The comparison after export, and what it blocks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact
from pipelines.evaluation.classifier import Classifier, load_classifier
from pipelines.labels.examples import Example, read_split
from pipelines.release.gguf import Header, read_header
from pipelines.release.llama import GgufModel
from pipelines.release.parity import Parity, compare, plot
from pipelines.release.probes import PROBES
from pipelines.release.settings import MINIMUM_AGREEMENT, Quantisation, ReleaseSettings
from tests.pipelines.release.samples import no_progress


@pytest.fixture(scope="module")
def original(adapter: Artifact) -> Classifier:
    return load_classifier(adapter)


@pytest.fixture(scope="module")
def rows(training: tuple[Artifact, Artifact]) -> list[Example]:
    return read_split(training[0], "test")


def files(gguf: Artifact, *quantisations: Quantisation) -> dict[Quantisation, tuple[Path, Header]]:
    paths = {name: gguf.path / str(gguf.manifest["quantisations"][name]["file"]) for name in quantisations}
    return {name: (path, read_header(path)) for name, path in paths.items()}


def compared(
    original: Classifier, rows: list[Example], gguf: Artifact, *names: Quantisation, **settings: Any
) -> Parity:
    return compare(original, rows, files(gguf, *names), settings=ReleaseSettings(**settings), progress=no_progress)


def test_a_faithful_export_passes_and_says_what_it_measured(gguf: Artifact) -> None:
    """G14, G6: every quantisation is judged against the unquantised model on all held-out rows."""
    parity = json.loads((gguf.path / "parity.json").read_text(encoding="utf-8"))
    assert gguf.manifest["parity"] == {"passed": True, "reasons": []}
    assert parity["rows"] == parity["tokens"]["held_out"] == 36
    assert parity["tokens"]["held_out_differing"] == 0
    found = gguf.manifest["quantisations"]
    assert list(found) == ["F16", "Q4_K_M", "Q8_0"]  # sorted in the stored manifest
    assert found["F16"]["max_logit_difference"] < 0.02  # of logits up to 12
    assert found["F16"]["max_logit_difference"] < found["Q8_0"]["max_logit_difference"]
    assert found["F16"]["size"] > found["Q8_0"]["size"] > found["Q4_K_M"]["size"]
    assert all(values["agreement"] >= 0.9 for values in found.values())
    assert (gguf.path / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_known_differences_of_llama_cpps_tokenizer_are_those_and_no_others(
    gguf: Artifact, original: Classifier
) -> None:
    """G6: a probe marked as different that reads alike would hide the next difference."""
    model = GgufModel(gguf.path / "notices-F16.gguf", 48)
    differing = {
        probe.name for probe in PROBES if original.tokenizer(probe.text)["input_ids"] != model.tokens(probe.text)
    }
    assert differing == {probe.name for probe in PROBES if probe.known_difference}


def test_a_held_out_text_that_is_read_otherwise_blocks(
    gguf: Artifact, original: Classifier, rows: list[Example]
) -> None:
    """G6: also where the difference is a known one."""
    exotic = [*rows[:5], replace(rows[0], id="korean", text="한국어 문장입니다")]
    parity = compared(original, exotic, gguf, "Q8_0")
    assert not parity.passed
    assert "held-out row korean" in parity.reasons[0]
    assert "1 of 6 held-out texts" in parity.reasons[1]


def test_a_file_that_predicts_otherwise_blocks(gguf: Artifact, original: Classifier, rows: list[Example]) -> None:
    """G14: against a model whose head is turned round, every prediction of the file is another one."""
    import torch

    head = original.model.base_model.model.classifier.modules_to_save["default"]
    with torch.no_grad():
        kept = head.weight.clone(), head.bias.clone()
        head.weight.copy_(kept[0].roll(1, 0))
        head.bias.copy_(kept[1].roll(1, 0))
        try:
            parity = compared(original, rows, gguf, "F16", "Q4_K_M")
        finally:
            head.weight.copy_(kept[0])
            head.bias.copy_(kept[1])
    assert not parity.passed
    text = "\n".join(parity.reasons)
    assert "Q4_K_M predicts" in text
    assert "at least 0.9 is asked for" in text
    assert "F16: logits differ by up to" in text
    assert parity.quantisations["F16"].agreement < 0.5
    assert plot(parity).startswith(b"\x89PNG")


def test_no_held_out_rows_prove_nothing(gguf: Artifact, original: Classifier) -> None:
    parity = compared(original, [], gguf, "Q8_0")
    assert parity.reasons == ("there are no held-out rows to compare on",)


def test_a_floor_that_is_not_named_keeps_its_default() -> None:
    settings = ReleaseSettings(minimum_agreement={"Q4_K_M": 0.8})
    assert settings.minimum_agreement == {**MINIMUM_AGREEMENT, "Q4_K_M": 0.8}
    with pytest.raises(ValueError, match="minimum_agreement of Q8_0 is 99"):
        ReleaseSettings(minimum_agreement={"Q8_0": 99})
