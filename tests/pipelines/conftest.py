"""A small training set of our own sentences, and adapters trained on it for real, once a session."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact, load, seal
from pipelines.fingerprint import fingerprint
from pipelines.training.job import TrainingJob, train
from pipelines.training.settings import ClassifySettings, LoraSettings

THINGS = (
    "kettle", "desk lamp", "office chair", "bicycle helmet", "raincoat", "garden hose", "toolbox", "suitcase",
    "blender", "running shoes", "tent", "bookshelf", "headphones", "sewing machine", "camera strap", "wool blanket",
)  # fmt: skip
SAYINGS = {
    "refund": ("I want my money back for the {}.", "Please credit the price of the {} to my card."),
    "delivery": ("Where is the parcel with my {}?", "The courier never came with the {}."),
    "repair": ("The {} stopped working after a week.", "A part of the {} is broken, can it be fixed?"),
}
PRAISE = ("The {} is wonderful, thank you.", "Best {} that I ever had.")
QUICK = ClassifySettings(epochs=3, batch_size=16, maximum_tokens=48, lora=LoraSettings(rank=4, alpha=8))


def write_training_set(
    folder: Path, *, multi_label: bool = False, shuffled: bool = False, praise: bool = False, validation: bool = True
) -> Artifact:
    """Sixteen things, the last five held out; ``shuffled`` spoils the training labels, ``praise`` adds a category."""
    sayings = {**SAYINGS, "praise": PRAISE} if praise else SAYINGS
    names = sorted(sayings)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for number, thing in enumerate(THINGS):
        split = "test" if number > 10 else "validation" if validation and number > 8 else "train"
        for place, name in enumerate(names):
            for saying in sayings[name]:
                text, labels = saying.format(thing), [name]
                if multi_label and number % 2:
                    other = names[(place + 1) % len(names)]
                    text, labels = f"{text} {sayings[other][0].format(thing)}", sorted([name, other])
                origin = "model" if split == "test" and number == 15 else "human"
                row = {"id": f"{split}-{len(splits[split])}", "text": text, "labels": labels, "group": thing}
                splits[split].append({**row, "origin": origin})
    if shuffled:
        draw = random.Random(3)
        for row in splits["train"]:
            row["labels"] = [draw.choice(names)]
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    facts = {"kind": "training_set", "categories": names, "multi_label": multi_label}
    rows_of = {split: len(rows) for split, rows in splits.items()}
    seal(folder, {"fingerprint": fingerprint(splits, multi_label), **facts, "rows": rows_of})
    return load(folder)


def train_quickly(training_set: Artifact, output: Path, settings: ClassifySettings = QUICK) -> Artifact:
    job = TrainingJob(use_case="shop", training_set=training_set.path, output=output, settings=settings)
    return train(job, progress=lambda _: None)


def texts_of(training_set: Artifact, split: str) -> Sequence[str]:
    lines = (training_set.path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """One label a row, three categories."""
    return write_training_set(tmp_path_factory.mktemp("small") / "training_set")


@pytest.fixture(scope="session")
def small_adapter(small_set: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Trained on ``small_set``."""
    return train_quickly(small_set, tmp_path_factory.mktemp("small") / "lora_adapter")


@pytest.fixture(scope="session")
def multi_set(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """One or two labels a row."""
    return write_training_set(tmp_path_factory.mktemp("multi") / "training_set", multi_label=True)


@pytest.fixture(scope="session")
def multi_adapter(multi_set: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Trained on ``multi_set``."""
    return train_quickly(multi_set, tmp_path_factory.mktemp("multi") / "lora_adapter")


@pytest.fixture(scope="session")
def spoilt_set(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Training labels drawn at random, true test labels, and a category that ``small_set`` does not know."""
    return write_training_set(tmp_path_factory.mktemp("spoilt") / "training_set", shuffled=True, praise=True)


@pytest.fixture(scope="session")
def spoilt_adapter(spoilt_set: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Trained on ``spoilt_set``: a deliberately bad model."""
    return train_quickly(spoilt_set, tmp_path_factory.mktemp("spoilt") / "lora_adapter")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    moto = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    yield "http://{}:{}".format(*moto.get_host_and_port())
    moto.stop()


@pytest.fixture
def s3_store(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an empty store; what is tested, and other processes, find it through the field's own variables."""
    import boto3
    import requests
    import s3fs

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-a-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-a-test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    requests.post(f"{s3_server}/moto-api/reset", timeout=10)
    s3fs.S3FileSystem.clear_instance_cache()
    yield boto3.client("s3")
    s3fs.S3FileSystem.clear_instance_cache()
