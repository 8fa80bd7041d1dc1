"""Small training sets of our own; what is trained on them and exported, for real, once for all processes of a run."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact, alone, load, seal
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


def made_once(folder: Path, make: Callable[[Path], Sequence[Artifact]]) -> list[Artifact]:
    """What ``make`` wrote below ``folder``, in whichever process of the run came first."""
    with alone(folder.parent / f".{folder.name}.lock", "test process", seconds=240):
        made = folder / "made.json"
        if not made.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            made.write_text(json.dumps([str(each.path) for each in make(folder)]), encoding="utf-8")
        return [load(Path(each)) for each in json.loads(made.read_text(encoding="utf-8"))]


def set_and_adapter(
    folder: Path,
    write: Callable[[Path], Artifact] = write_training_set,
    train: Callable[[Artifact, Path], Artifact] = train_quickly,
) -> list[Artifact]:
    """A training set, and an adapter trained on it."""
    training_set = write(folder / "training_set")
    return [training_set, train(training_set, folder / "lora_adapter")]


def export_of(training: Sequence[Artifact], folder: Path, **options: Any) -> Artifact:
    """The export of a training set's adapter, made once below ``folder``."""
    from pipelines.release.export import export
    from pipelines.release.settings import ReleaseSettings

    def make(folder: Path) -> list[Artifact]:
        training_set, adapter = training
        usual: dict[str, Any] = {"settings": ReleaseSettings(), "progress": lambda _: None}
        return [export(adapter, training_set, folder=folder / "gguf_model", **usual, **options)]

    return made_once(folder, make)[0]


@pytest.fixture(scope="session")
def small(shared: Path) -> list[Artifact]:
    return made_once(shared / "small", set_and_adapter)


@pytest.fixture(scope="session")
def small_set(small: list[Artifact]) -> Artifact:
    """One label a row, three categories."""
    return small[0]


@pytest.fixture(scope="session")
def small_adapter(small: list[Artifact]) -> Artifact:
    """Trained on ``small_set``."""
    return small[1]


@pytest.fixture(scope="session")
def multi(shared: Path) -> list[Artifact]:
    return made_once(shared / "multi", partial(set_and_adapter, write=partial(write_training_set, multi_label=True)))


@pytest.fixture(scope="session")
def multi_set(multi: list[Artifact]) -> Artifact:
    """One or two labels a row."""
    return multi[0]


@pytest.fixture(scope="session")
def multi_adapter(multi: list[Artifact]) -> Artifact:
    """Trained on ``multi_set``."""
    return multi[1]


@pytest.fixture(scope="session")
def spoilt(shared: Path) -> list[Artifact]:
    write = partial(write_training_set, shuffled=True, praise=True)
    return made_once(shared / "spoilt", partial(set_and_adapter, write=write))


@pytest.fixture(scope="session")
def spoilt_set(spoilt: list[Artifact]) -> Artifact:
    """Training labels drawn at random, true test labels, and a category that ``small_set`` does not know."""
    return spoilt[0]


@pytest.fixture(scope="session")
def spoilt_adapter(spoilt: list[Artifact]) -> Artifact:
    """Trained on ``spoilt_set``: a deliberately bad model."""
    return spoilt[1]


@pytest.fixture(scope="session")
def chat_training(shared: Path) -> list[Artifact]:
    """Training set and adapter of task generate: half of the chats have something retrieved, the others nothing."""
    from tests.pipelines.chat_base import make_chat_base, write_chat_set
    from tests.pipelines.release.chat_samples import train_chat

    def train(training_set: Artifact, output: Path) -> Artifact:
        return train_chat(make_chat_base(output.parent / "base", hidden=128), training_set, output)

    write = partial(write_chat_set, context=True)
    return made_once(shared / "chat_training", partial(set_and_adapter, write=write, train=train))


@pytest.fixture(scope="session")
def chat_adapter(chat_training: list[Artifact]) -> Artifact:
    return chat_training[1]


@pytest.fixture(scope="session")
def chat_gguf(chat_training: list[Artifact], shared: Path) -> Artifact:
    """The export of ``chat_adapter``."""
    from tests.pipelines.release.chat_samples import CHAT_EVALUATION

    return export_of(chat_training, shared / "chat_gguf", evaluation=CHAT_EVALUATION)


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
