"""What is sent to an Ollama server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.artifacts import Artifact
from pipelines.errors import (
    ArtifactError,
    ConfigError,
    ExportError,
    FreshetError,
    NotBuiltError,
    ServerUnavailableError,
)
from pipelines.release.modelfile import parsed
from pipelines.release.ollama import push_to_ollama
from pipelines.release.registry import PublishedVersion, publish
from pipelines.release.settings import OllamaSettings
from tests.pipelines.release.chat_samples import CHAT_USE_CASE
from tests.pipelines.release.ollama_server import Ollama
from tests.pipelines.release.samples import USE_CASE, copied, no_progress, write_report


@pytest.fixture
def ollama() -> Iterator[Ollama]:
    server = Ollama()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def version(chat_gguf: Artifact, chat_adapter: Artifact, tmp_path: Path) -> PublishedVersion:
    """The first version of a model that answers in chats."""
    passed = {"passed": True, "reasons": []}
    return publish(
        copied(chat_gguf, tmp_path / "gguf", parity=passed),
        chat_adapter,
        copied(write_report(tmp_path / "one", chat_adapter), tmp_path / "report", use_case=CHAT_USE_CASE),
        use_case=CHAT_USE_CASE,
        registry_url=str(tmp_path / "registry"),
    )


def push(
    server: Ollama, version: PublishedVersion, progress: Callable[[str], None] = no_progress, **settings: Any
) -> str:
    wanted = OllamaSettings(**{"url": server.url, **settings})
    return push_to_ollama(version, wanted, quantisation="Q8_0", progress=progress)


def test_a_model_is_made_with_what_the_modelfile_says(ollama: Ollama, version: PublishedVersion) -> None:
    """G9, G11, G12: template, stops and context on the server are those of the version."""
    said: list[str] = []
    assert push(ollama, version, said.append) == "shop:v1"
    assert ollama.models.keys() == {"shop:v1", "shop:latest"}
    made = ollama.models["shop:v1"]
    (name, digest), *others = made["files"].items()
    assert (name, others) == ("shop-Q8_0.gguf", [])
    assert ollama.blobs[digest] == (version.path / name).read_bytes()
    written = parsed((version.path / "Modelfile").read_text(encoding="utf-8"))
    assert made["template"] == dict(written)["template"]
    assert made["system"] == version.manifest["prompt"]["system"]
    assert made["parameters"] == {
        "stop": version.manifest["stops"],
        "num_ctx": version.manifest["context_length"],
        "num_predict": version.manifest["maximum_answer_tokens"],
        "temperature": 0,
        "repeat_penalty": 1,
    }
    statuses = ["parsing GGUF", "using existing layer", "writing manifest", "success"]
    assert said[1:-1] == [f"shop:v1: {status}" for status in statuses]
    assert said[0].startswith("shop-Q8_0.gguf (")


def test_a_file_that_is_there_is_not_sent_again(ollama: Ollama, version: PublishedVersion) -> None:
    push(ollama, version)
    del ollama.asked[:]
    assert push(ollama, version, model="team/shop") == "team/shop:v1"
    digest = next(iter(ollama.blobs))
    assert ollama.asked == ["GET /api/version", f"HEAD /api/blobs/{digest}", "POST /api/create", "POST /api/copy"]
    assert ollama.models.keys() == {"shop:v1", "shop:latest", "team/shop:v1", "team/shop:latest"}


def test_an_upload_that_was_cut_off_leaves_nothing_and_starts_again(ollama: Ollama, version: PublishedVersion) -> None:
    ollama.cut_upload_after = 10_000
    with pytest.raises(ServerUnavailableError, match="cannot be reached"):
        push(ollama, version)
    assert (ollama.blobs, ollama.models) == ({}, {})
    ollama.cut_upload_after = None
    push(ollama, version)
    assert "shop:latest" in ollama.models


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        ({"error_while_making": "template error"}, ExportError, "refuses /api/create: HTTP 400, template error"),
        ({"cut_making": True}, ServerUnavailableError, "stopped before shop:v1 was made"),
        ({"fails": {"/api/create": 503}}, ServerUnavailableError, "fails at /api/create: HTTP 503"),
        ({"fails": {"POST /api/blobs": 400}}, ExportError, "refuses /api/blobs/sha256"),
        ({"fails": {"GET": 404}}, ConfigError, "is no Ollama server"),
        ({"fails": {"HEAD": 401}}, ConfigError, "lets nobody in without a password"),
        ({"version": "0.5.4"}, ConfigError, r"is 0\.5\.4: versions can be sent to 0\.5\.5 and later"),
    ],
)
def test_failures_leave_the_latest_model_and_say_whether_trying_again_can_help(
    ollama: Ollama, version: PublishedVersion, fault: dict[str, Any], error: type[FreshetError], said: str
) -> None:
    ollama.models["shop:latest"] = before = {"system": "the one before"}
    for name, value in fault.items():
        setattr(ollama, name, value)
    with pytest.raises(error, match=said):
        push(ollama, version)
    assert ollama.models == {"shop:latest": before}


def test_the_server_hashes_what_it_gets_and_knows_what_it_has(ollama: Ollama, version: PublishedVersion) -> None:
    """The server of these tests refuses what Ollama refuses, so that the others prove something."""
    import httpcore

    from pipelines.release.ollama import _Server

    with httpcore.ConnectionPool() as pool:
        server, file = _Server(pool, ollama.url), version.path / "shop-Q8_0.gguf"
        with pytest.raises(ExportError, match="digest mismatch"):
            server.send("sha256:" + "0" * 64, file, no_progress)
        wanted = {"model": "shop:v1", "files": {file.name: "sha256:" + "0" * 64}, "parameters": {}}
        with pytest.raises(ExportError, match="blob not found"):
            list(server.create(wanted))
        with pytest.raises(ExportError, match="not found"):
            server.copy("shop:v1", "shop:latest")


def test_a_server_that_is_not_there_is_unavailable(ollama: Ollama, version: PublishedVersion) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ServerUnavailableError, match=f"Ollama at {url} cannot be reached"):
            push(ollama, version, url=url)


def test_a_model_that_ollama_cannot_run_is_refused_with_the_reason(
    ollama: Ollama, chat_gguf: Artifact, chat_adapter: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise ExportError("the chat template asks for the date")

    monkeypatch.setattr("pipelines.release.bundle.modelfile", refuse)
    report = copied(write_report(tmp_path / "one", chat_adapter), tmp_path / "report", use_case=CHAT_USE_CASE)
    gguf = copied(chat_gguf, tmp_path / "gguf", parity={"passed": True, "reasons": []})
    version = publish(gguf, chat_adapter, report, use_case=CHAT_USE_CASE, registry_url=str(tmp_path / "registry"))
    with pytest.raises(ExportError, match=r"has no Modelfile, .*: the chat template asks for the date\. Remove"):
        push(ollama, version)
    assert ollama.asked == []


def test_a_classifier_is_refused(ollama: Ollama, tiny: Artifact, adapter: Artifact, report: Artifact) -> None:
    registry = str(report.path.parent / "registry")
    version = publish(tiny, adapter, report, use_case=USE_CASE, registry_url=registry)
    with pytest.raises(ExportError, match="assigns labels, and Ollama has no call for that"):
        push(ollama, version)


def test_only_whole_files_of_the_version_are_sent(ollama: Ollama, version: PublishedVersion) -> None:
    wanted = OllamaSettings(url=ollama.url)
    with pytest.raises(NotBuiltError, match="has no Q6_K"):
        push_to_ollama(version, wanted, quantisation="Q6_K", progress=no_progress)
    path = version.path / "shop-Q8_0.gguf"
    path.chmod(0o644)
    path.write_bytes(b"GGUF of somebody else")
    with pytest.raises(ArtifactError, match="missing or altered"):
        push(ollama, version)
    assert ollama.asked == []


@pytest.mark.parametrize(
    "url",
    ["ftp://host", "127.0.0.1:11434", "http://", "http://me:secret@host", "http://host:99999", "http://h/?a=secret"],
)
def test_an_address_that_cannot_be_one_is_refused_when_it_is_read(url: str) -> None:
    with pytest.raises(ValidationError, match="is no address of an Ollama server") as refused:
        OllamaSettings(url=url)
    assert "secret" not in str(refused.value).split("[type=")[0]


@pytest.mark.parametrize("model", ["shop:v1", "", "a b", "a/b/c/d", "-x"])
def test_a_name_that_ollama_does_not_know_is_refused_when_it_is_read(model: str) -> None:
    with pytest.raises(ValidationError):
        OllamaSettings(model=model)
