"""The importance matrix: what llama.cpp multiplies, and what is gained by knowing it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.artifacts import Artifact
from pipelines.basemodel.language import Draw, chat
from pipelines.errors import ExportError
from pipelines.evaluation.classifier import base_folder
from pipelines.models import BUNDLED_CHAT, model_folder
from pipelines.prompt import render
from pipelines.release.gguf import convert, quantise
from pipelines.release.imatrix import importance
from pipelines.release.language import GgufLanguageModel
from pipelines.release.merge import merge_checkpoint
from pipelines.release.tokens import load_tokenizer
from tests.pipelines.chat_base import QUESTIONS, THINGS, answer_of
from tests.pipelines.release.samples import no_progress
from tests.pipelines.release.test_merge_streaming import load

TEXTS = [f"{question.format(thing)} {answer_of(thing)}" for question in QUESTIONS[:4] for thing in THINGS]


@pytest.fixture(scope="module")
def model(chat_adapter: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The merged model, and its file."""
    folder = tmp_path_factory.mktemp("imatrix")
    merge_checkpoint(base_folder(chat_adapter), chat_adapter.path, folder / "merged")
    convert(folder / "merged", folder / "model-F16.gguf", name="model", metadata={})
    return folder / "merged", folder / "model-F16.gguf"


def test_every_matrix_is_weighed_by_the_squares_of_what_it_is_given(model: tuple[Path, Path]) -> None:
    """G14: as transformers computes them."""
    found = importance(model[1], TEXTS[:5], progress=no_progress)
    assert len(found.values) == 2 * 7 + 1
    theirs, tokenizer = load(model[0]), load_tokenizer(model[0])
    squares, count = torch.zeros(theirs.config.intermediate_size), 0
    layer = theirs.model.layers[1].mlp.down_proj

    def hook(_module: object, given: tuple[torch.Tensor, ...]) -> None:
        nonlocal squares, count
        squares, count = squares + given[0][0].square().sum(0), count + given[0].shape[1]

    layer.register_forward_pre_hook(hook)
    with torch.no_grad():
        for text in TEXTS[:5]:
            theirs(torch.tensor([tokenizer(text)["input_ids"]]))
    assert found.tokens == count
    expected = (squares / count).numpy()
    assert np.abs(found.values["blk.1.ffn_down.weight"] - expected).max() < 0.02 * expected.max()


def test_quantising_takes_it(model: tuple[Path, Path], tmp_path: Path) -> None:
    """G13"""
    found = importance(model[1], TEXTS[:5], progress=no_progress)
    headers = [
        quantise(model[1], tmp_path / f"{name}.gguf", "Q3_K_M", None, importance=weighed)
        for name, weighed in (("without", None), ("with", found))
    ]
    assert headers[0].tensor_types == headers[1].tensor_types
    assert (tmp_path / "with.gguf").read_bytes() != (tmp_path / "without.gguf").read_bytes()


def test_a_classifier_is_weighed_too(gguf: Artifact, tmp_path: Path) -> None:
    found = importance(gguf.path / "notices-F16.gguf", TEXTS[:5], progress=no_progress, encoder=True)
    assert "blk.0.ffn_down.weight" in found.values
    header = quantise(
        gguf.path / "notices-F16.gguf", tmp_path / "out.gguf", "Q4_K_M", gguf.manifest["categories"], importance=found
    )
    assert header.pooling == "RANK"


def test_what_was_never_seen_is_copied_more_exactly_with_it(tmp_path: Path) -> None:
    """G14: on the model that comes with Freshet, which is wide enough for every quantisation."""
    from transformers import AutoTokenizer

    folder = model_folder(BUNDLED_CHAT, None)
    convert(folder, tmp_path / "F16.gguf", name="base", metadata={})
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def texts(draw: Draw, number: int) -> list[str]:
        chats = [chat(draw, texts=2, facts=4, questions=3) for _ in range(number)]
        return [render(tokenizer, turns, answer=True) for turns in chats]

    found = importance(tmp_path / "F16.gguf", texts(Draw(1), 20), progress=no_progress)
    for name, weighed in (("without", None), ("with", found)):
        quantise(tmp_path / "F16.gguf", tmp_path / f"{name}.gguf", "Q2_K", None, importance=weighed)
    models = {name: GgufLanguageModel(tmp_path / f"{name}.gguf", 1024) for name in ("F16", "without", "with")}
    apart = dict.fromkeys(("without", "with"), 0.0)
    for text in texts(Draw(2, held_out=True), 6):
        ids = models["F16"].tokens(text)[:1024]
        said = {name: torch.from_numpy(model.logits(ids)).double().log_softmax(-1) for name, model in models.items()}
        for name in apart:
            apart[name] += float(torch.nn.functional.kl_div(said[name], said["F16"], log_target=True, reduction="sum"))
    assert apart["with"] < 0.95 * apart["without"]


def test_without_texts_there_is_none(model: tuple[Path, Path]) -> None:
    with pytest.raises(ExportError, match="needs texts; 0 with 0 tokens"):
        importance(model[1], [], progress=no_progress)
