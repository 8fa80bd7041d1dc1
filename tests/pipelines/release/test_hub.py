"""What is sent to the Hugging Face Hub, and what is not."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.artifacts import Artifact
from pipelines.errors import ConfigError, ExportError, FreshetError, LockedError, ServerUnavailableError
from pipelines.release.hub import push_to_hub, with_new_version
from pipelines.release.registry import PublishedVersion, publish
from pipelines.release.settings import HubSettings, OllamaSettings, ReleaseSettings
from tests.pipelines.release.chat_samples import CHAT_USE_CASE
from tests.pipelines.release.hub_server import TOKEN, Blob, Hub
from tests.pipelines.release.samples import USE_CASE, copied, no_progress, write_report

NAME = "somebody/notices"
Publish = Callable[..., PublishedVersion]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(tiny: Artifact, adapter: Artifact, tmp_path: Path) -> Publish:
    """Publish a version with GGUF files of its own."""

    def make(number: int = 1, *, registry: Path = tmp_path / "registry", files: int = 1) -> PublishedVersion:
        def fill(folder: Path) -> None:
            for each in range(files):
                (folder / f"notices-{number}-{each}.gguf").write_bytes(f"GGUF {number} {each}".encode() * 100)

        release = ReleaseSettings(
            hub=HubSettings(repository=NAME), ollama=OllamaSettings(url="http://inside.example:11434")
        ).model_dump(mode="json")
        gguf = copied(
            tiny,
            tmp_path / f"gguf-{registry.name}-{number}",
            edit=fill,
            fingerprint=f"{number:064x}",
            settings={**release, "serve": "Q4_K_M"},
        )
        champion = adapter.fingerprint if (registry / USE_CASE / "champion.json").exists() else None
        report = write_report(tmp_path / f"report-{registry.name}-{number}", adapter, champion=champion)
        return publish(gguf, adapter, report, use_case=USE_CASE, registry_url=str(registry))

    return make


def push(version: PublishedVersion, progress: Callable[[str], None] = no_progress, **settings: Any) -> str:
    return push_to_hub(version, HubSettings(**{"repository": NAME, **settings}), progress=progress)


def large(version: PublishedVersion) -> int:
    return sum(name.endswith((".gguf", ".safetensors")) for name in version.manifest["files"])


def test_a_version_becomes_one_private_commit_and_a_tag(hub: Hub, published: Publish) -> None:
    version, said = published(), []
    assert push(version, said.append) == f"{hub.url}/{NAME}/tree/v1"
    repository = hub.repositories[NAME]
    assert repository.private
    assert [commit.title for commit in repository.commits] == ["initial commit", "notices v1"]
    assert repository.tags == {"v1": repository.head.oid}
    files = repository.head.files
    assert files.keys() == {*version.manifest["files"], "manifest.json", ".gitattributes"}
    for name, digest in version.manifest["files"].items():
        assert hashlib.sha256(files[name].data).hexdigest() == digest
    front = yaml.safe_load(files["README.md"].data.decode().split("---\n")[1])
    assert front["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "new_version" not in front
    assert any("notices-1-0.gguf" in line for line in said)


def test_a_version_that_is_sent_again_changes_nothing(hub: Hub, published: Publish) -> None:
    version, said = published(), []
    push(version)
    before = len(hub.asked)
    assert push(version, said.append) == f"{hub.url}/{NAME}/tree/v1"
    assert not [line for line in hub.asked[before:] if "/commit/" in line or "PUT" in line or "/tag/" in line]
    assert said == [f"{hub.url}/{NAME} has v1 already"]


def test_the_next_version_takes_the_place_of_the_one_before_and_sends_only_what_is_new(
    hub: Hub, published: Publish
) -> None:
    first = published(1)
    push(first)
    repository, sent = hub.repositories[NAME], len(hub.puts)
    repository.add("by hand", {**repository.head.files, "notes.txt": repository.head.files["README.md"]})
    second = published(2)
    push(second)
    assert len(hub.puts) - sent == 1  # the GGUF file of its own; weights of the adapter are there
    files = repository.head.files
    assert files.keys() == {*second.manifest["files"], "manifest.json", ".gitattributes", "notes.txt"}
    assert "notices-1-0.gguf" not in files
    assert "notices-1-0.gguf" in repository.at("v1").files
    assert list(repository.tags) == ["v1", "v2"]


@pytest.mark.slow
def test_a_push_that_was_killed_goes_on_with_what_is_missing(hub: Hub, published: Publish) -> None:
    """The third of several uploads never ends; the process is killed there."""
    version = published(files=4)
    hub.hang_at_put = 2
    code = (
        "import sys; from pipelines.release.hub import push_to_hub; from pipelines.release.registry import champion;"
        "from pipelines.release.settings import HubSettings;"
        "push_to_hub(champion(sys.argv[1], 'notices'), HubSettings(repository=sys.argv[2]), progress=print)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    registry = str(version.path.parent.parent)
    with subprocess.Popen([sys.executable, "-c", code, registry, NAME], env=environment) as process:
        assert hub.hanging.wait(60)
        process.kill()
    repository = hub.repositories[NAME]
    assert len(repository.commits) == 1  # nothing half of a version to be seen
    assert repository.tags == {}
    assert len(hub.stored) == 2
    before, hub.hang_at_put = set(hub.stored), None
    del hub.puts[:]
    push(version)
    assert len(hub.puts) == large(version) - 2
    assert not before & set(hub.puts)
    assert repository.tags == {"v1": repository.head.oid}


def test_a_commit_whose_answer_was_lost_is_found_and_tagged(hub: Hub, published: Publish) -> None:
    version = published()
    hub.lose_answer_of_commit = True
    with pytest.raises(ServerUnavailableError, match="cannot be reached"):
        push(version)
    hub.lose_answer_of_commit = False
    repository = hub.repositories[NAME]
    commit = repository.head.oid
    repository.add("by hand", {**repository.head.files})
    push(version)
    assert repository.tags == {"v1": commit}
    assert [one.title for one in repository.commits] == ["initial commit", "notices v1", "by hand"]


def test_without_a_token_nothing_is_asked(hub: Hub, published: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"HF_TOKEN is not set: put a token with write access there"):
        push(published())
    assert hub.asked == []


def test_the_token_is_shown_nowhere(
    hub: Hub, published: Publish, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG, "huggingface_hub")
    said: list[str] = []
    push(published(), said.append)
    monkeypatch.setenv("HF_TOKEN", "hf_another_one")
    with pytest.raises(ConfigError, match="refuses the token in HF_TOKEN") as refused:
        push(published(2))
    shown = [*said, str(refused.value), *(record.getMessage() for record in caplog.records)]
    assert caplog.records
    assert not [line for line in shown if TOKEN in line or "hf_another_one" in line]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "endpoint", ["http://hub.example", "ftp://127.0.0.1", "hub.example", "https://me:secret@hub.example", "http://[::1"]
)
def test_the_token_goes_to_no_address_where_others_read_it(
    hub: Hub, published: Publish, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(ConfigError, match=r"HF_ENDPOINT .* cannot be used") as refused:
        push(published())
    assert "secret" not in str(refused.value)


def test_a_private_model_never_goes_into_a_public_repository(hub: Hub, published: Publish) -> None:
    version = published()
    hub.make(NAME, private=False)
    with pytest.raises(ConfigError, match=r"is public, and release\.hub\.private is true"):
        push(version)
    assert hub.puts == []
    push(version, private=False)
    assert list(hub.repositories[NAME].tags) == ["v1"]


def test_what_others_put_into_a_repository_is_not_replaced(hub: Hub, published: Publish) -> None:
    version = published()
    hub.make(NAME, private=True, files={".gitattributes": b"", "model.bin": b"weights"})
    with pytest.raises(ConfigError, match=r"holds model.bin and no version of Freshet's"):
        push(version)
    other = {"kind": "published_model", "use_case": "other", "files": {}}
    hub.make(NAME, private=True, files={"manifest.json": json.dumps(other).encode()})
    with pytest.raises(ConfigError, match="holds versions of 'other'"):
        push(version)


def test_a_version_is_tagged_only_when_all_of_it_arrived(hub: Hub, published: Publish) -> None:
    """A repository's .gitignore makes the Hub leave out files without a word."""
    version = published()
    repository = hub.make(NAME, private=True, files={".gitignore": b"*.gguf"})
    with pytest.raises(ExportError, match=r"left out notices-.*\.gguf"):
        push(version)
    assert repository.tags == {}
    repository.add("by hand", {name: blob for name, blob in repository.head.files.items() if name != ".gitignore"})
    push(version)
    assert repository.at("v1").files.keys() == {*version.manifest["files"], "manifest.json"}


def test_what_somebody_else_commits_meanwhile_is_not_lost(hub: Hub, published: Publish) -> None:
    version, repository = published(), hub.make(NAME, private=True)

    def meanwhile(_: str) -> None:
        if len(repository.commits) == 1:
            repository.add("by hand", {"notes.txt": Blob(b"mine", False)})

    with pytest.raises(LockedError, match=r"changed by somebody else meanwhile .* publish again"):
        push(version, meanwhile)
    assert [commit.title for commit in repository.commits] == ["initial commit", "by hand"]


def test_a_tag_of_another_registry_is_not_taken_for_ours(hub: Hub, published: Publish, tmp_path: Path) -> None:
    push(published(1))
    another = published(2, registry=tmp_path / "another")
    assert another.version == "v1"
    with pytest.raises(ConfigError, match=r"the tag v1 of .* is another model"):
        push(another)


def test_the_hub_does_not_learn_where_else_versions_go(hub: Hub, published: Publish) -> None:
    version = published()
    push(version)
    files = hub.repositories[NAME].head.files
    assert "inside.example" in (version.path / "manifest.json").read_text()
    for blob in files.values():
        assert b"inside.example" not in blob.data
    manifest = json.loads(files["manifest.json"].data)
    assert (manifest["files"], manifest["fingerprint"]) == (version.manifest["files"], version.fingerprint)


def test_where_a_local_base_lies_is_nobody_elses_business(
    hub: Hub, chat_gguf: Artifact, chat_adapter: Artifact, tmp_path: Path
) -> None:
    """Nor does the card name it as a model of the Hub."""
    base = str(chat_adapter.manifest["base_model"])
    version = publish(
        copied(chat_gguf, tmp_path / "gguf", parity={"passed": True, "reasons": []}),
        chat_adapter,
        copied(write_report(tmp_path / "one", chat_adapter), tmp_path / "report", use_case=CHAT_USE_CASE),
        use_case=CHAT_USE_CASE,
        registry_url=str(tmp_path / "registry"),
    )
    assert base in (version.path / "manifest.json").read_text()
    push(version)
    files = hub.repositories[NAME].head.files
    assert not [name for name, blob in files.items() if base.encode() in blob.data]
    assert b"base_model:" not in files["README.md"].data


def test_the_repository_before_points_to_the_one_that_replaces_it(hub: Hub, published: Publish) -> None:
    first, second = published(1), published(2)
    push(first, repository="somebody/old")
    for _ in range(2):
        push(second, replaces="somebody/old")
    old = hub.repositories["somebody/old"]
    assert [commit.title for commit in old.commits] == ["initial commit", "notices v1", f"Replaced by {NAME}"]
    before, after = (old.at(each).files["README.md"].data.decode() for each in ("v1", "main"))
    assert after == before.replace("\n---\n", f"\nnew_version: {NAME}\n---\n", 1)
    assert b"new_version" not in hub.repositories[NAME].head.files["README.md"].data
    with pytest.raises(ConfigError, match="somebody/missing is not there"):
        push(second, replaces="somebody/missing")
    with pytest.raises(ValueError, match="is the repository itself"):
        HubSettings(repository=NAME, replaces=NAME)


def test_a_card_gets_its_successor_whatever_it_looked_like() -> None:
    line = "new_version: a/b\n"
    assert with_new_version("# Title\n", "a/b") == f"---\n{line}---\n# Title\n"
    assert with_new_version("---\nx: 1\n---\n# T\n", "a/b") == f"---\nx: 1\n{line}---\n# T\n"
    assert with_new_version("---\nnew_version: c/d\nx: 1\n---\n", "a/b") == f"---\nx: 1\n{line}---\n"
    done = with_new_version("---\nx: 1\n---\n---\n", "a/b")
    assert with_new_version(done, "a/b") == done


@pytest.mark.parametrize(
    ("asked", "status", "error", "said"),
    [
        ("commit/main", 412, LockedError, "changed by somebody else"),
        ("/tag/", 409, LockedError, "changed by somebody else"),
        ("/repos/create", 503, ServerUnavailableError, "cannot be used now: HTTP 503"),
        ("commit/main", 422, ExportError, "refuses this version"),
        ("/storage/", 400, ExportError, "refuses this version"),
        ("/refs", 403, ConfigError, "refuses the token"),
    ],
)
def test_failures_say_whether_trying_again_can_help(
    hub: Hub, published: Publish, asked: str, status: int, error: type[FreshetError], said: str
) -> None:
    version = published()
    hub.fails[asked] = status
    with pytest.raises(error, match=said) as failed:
        push(version)
    assert "signature" not in str(failed.value)
    hub.fails.clear()
    push(version)
    assert list(hub.repositories[NAME].tags) == ["v1"]


def test_a_hub_that_is_not_there_is_unavailable(hub: Hub, published: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    version = published()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ServerUnavailableError, match="cannot be reached"):
        push(version)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        push(version)


def test_a_damaged_file_is_not_sent(hub: Hub, published: Publish) -> None:
    from pipelines.errors import ArtifactError

    version = published()
    path = version.path / "notices-1-0.gguf"
    path.chmod(0o644)
    path.write_bytes(b"GGUF of somebody else")
    with pytest.raises(ArtifactError, match=re.escape(path.name)):
        push(version)
    assert hub.asked == []
