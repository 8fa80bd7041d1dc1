"""The registry on object stores: S3 against moto's server, Google Cloud Storage, and stores without conditions."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

from pipelines.artifacts import Artifact, load
from pipelines.errors import (
    ArtifactError,
    ConfigError,
    GateRefusedError,
    LockedError,
    NotBuiltError,
    ServerUnavailableError,
)
from pipelines.release import storage
from pipelines.release.classifier import GgufClassifier
from pipelines.release.registry import champion, pointer_token, promote, publish, rollback, versions
from pipelines.release.storage import LocalStorage, ObjectStorage, open_storage
from tests.pipelines.release.samples import USE_CASE, variant, write_report

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read at import: else it asks by gRPC what the bucket is
KILLS = int(os.environ.get("FRESHET_TEST_KILLS", "50"))


URL = "s3://models/registry"


def keys(s3: Any) -> list[str]:
    return [each["Key"] for each in s3.list_objects_v2(Bucket="models").get("Contents", [])]


def publish_all(tiny: Artifact, adapter: Artifact, folder: Path, url: str, count: int, **given: Any) -> None:
    for number in range(count):
        report = write_report(folder / f"report-{number}", adapter, champion=adapter.fingerprint if number else None)
        publish(variant(tiny, folder, number), adapter, report, use_case=USE_CASE, registry_url=url, **given)


def test_a_version_on_s3_is_published_fetched_and_rolled_back(
    s3: Any, tiny: Artifact, adapter: Artifact, tmp_path: Path
) -> None:
    """T15, T17: its manifest is written last, files come through the cache, and the pointer's token changes."""
    assert champion(URL, USE_CASE) is None
    assert pointer_token(URL, USE_CASE) is None
    publish_all(tiny, adapter, tmp_path, URL, 1)
    token = pointer_token(URL, USE_CASE)
    publish_all(tiny, adapter, tmp_path / "more", URL, 2)
    assert [each.version for each in versions(URL, USE_CASE)] == ["v1", "v2"]
    served = champion(URL, USE_CASE)
    assert served is not None
    assert (served.version, served.uri) == ("v2", "s3://models/registry/notices/v2")
    assert pointer_token(URL, USE_CASE) not in (None, token)
    written = sorted(
        s3.list_objects_v2(Bucket="models", Prefix="registry/notices/v2/")["Contents"],
        key=lambda each: each["LastModified"],
    )
    assert written[-1]["LastModified"] == max(each["LastModified"] for each in written)
    assert "registry/notices/v2/manifest.json" in [each["Key"] for each in written]
    assert load(served.fetch("adapter")).fingerprint == adapter.fingerprint
    file = served.gguf("Q4_K_M")
    assert file.read_bytes() == (tiny.path / "notices-Q4_K_M.gguf").read_bytes()
    assert load(served.fetch()).manifest == served.manifest
    with pytest.raises(ConfigError, match="is no local folder"):
        _ = served.path
    with pytest.raises(NotBuiltError, match="has no 'grammar'"):
        served.fetch("grammar")
    assert rollback(URL, USE_CASE).version == "v1"
    assert promote(URL, USE_CASE, "v2") == served
    assert "registry/notices/lock.json" not in keys(s3)


def test_what_was_altered_is_fetched_again_or_refused(
    s3: Any, tiny: Artifact, adapter: Artifact, tmp_path: Path
) -> None:
    """T8: in the cache and in the store."""
    publish_all(tiny, adapter, tmp_path, URL, 2)
    served = champion(URL, USE_CASE)
    assert served is not None
    file = served.gguf("Q4_K_M")
    whole = file.read_bytes()
    file.write_bytes(b"half")
    assert served.gguf("Q4_K_M").read_bytes() == whole
    file.unlink()
    s3.put_object(Bucket="models", Key="registry/notices/v2/notices-Q4_K_M.gguf", Body=b"other")
    with pytest.raises(ArtifactError, match=r"v2/notices-Q4_K_M.gguf is altered"):
        served.gguf("Q4_K_M")
    s3.delete_object(Bucket="models", Key="registry/notices/v1/notices-Q4_K_M.gguf")
    with pytest.raises(ArtifactError, match=r"v1/notices-Q4_K_M.gguf is missing"):
        rollback(URL, USE_CASE)
    s3.put_object(Bucket="models", Key="registry/notices/v2/manifest.json", Body=b"{}")
    with pytest.raises(ArtifactError, match="missing or altered"):
        champion(URL, USE_CASE)


def test_a_classifier_answers_from_a_store_as_before(
    s3: Any, gguf: Artifact, adapter: Artifact, report: Artifact
) -> None:
    """What it says of its labels comes with the one file that is fetched."""
    version = publish(gguf, adapter, report, use_case=USE_CASE, registry_url=URL)
    texts = ["Please note that the lift is shut this week.", "A fee is charged."]
    wanted = GgufClassifier(gguf.path / "notices-Q4_K_M.gguf").predict(texts)
    assert GgufClassifier(version.gguf("Q4_K_M")).predict(texts) == wanted


def test_a_file_that_is_missing_from_a_version_is_not_a_missing_bucket(
    s3: Any, tiny: Artifact, adapter: Artifact, report: Artifact
) -> None:
    version = publish(tiny, adapter, report, use_case=USE_CASE, registry_url=URL)
    s3.delete_object(Bucket="models", Key="registry/notices/v1/notices-Q4_K_M.gguf")
    with pytest.raises(ArtifactError, match=r"v1/notices-Q4_K_M.gguf is missing.*restore it, or serve another version"):
        version.gguf("Q4_K_M")


def test_a_file_that_arrives_otherwise_is_no_version(
    s3: Any, tiny: Artifact, adapter: Artifact, report: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T8: hashes are read back from the store before the manifest is written; the number is not given again."""
    import s3fs

    def garbled(self: Any, local: str, remote: str, **_: Any) -> None:
        self.pipe_file(remote, Path(local).read_bytes()[:-1])

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "put_file", garbled)
        with pytest.raises(ArtifactError, match="is altered"):
            publish(tiny, adapter, report, use_case=USE_CASE, registry_url=URL)
    assert versions(URL, USE_CASE) == []
    assert keys(s3) == ["registry/notices/claims/v1"]
    assert publish(tiny, adapter, report, use_case=USE_CASE, registry_url=URL).version == "v2"


def test_eight_publishers_on_s3_make_one_version_or_one_winner(
    s3: Any, tiny: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path
) -> None:
    """T16"""

    def outcome(gguf: Artifact) -> str:
        try:
            return publish(gguf, adapter, report, use_case=USE_CASE, registry_url=URL).version
        except GateRefusedError:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(outcome, [variant(tiny, tmp_path, number) for number in range(8)]))
        assert sorted(made) == ["refused"] * 7 + ["v1"]
        winner = variant(tiny, tmp_path / "again", made.index("v1"))
        assert list(pool.map(outcome, [winner] * 8)) == ["v1"] * 8
    (only,) = versions(URL, USE_CASE)
    only.fetch()


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_champion_is_whole_whenever_its_publisher_is_killed(
    s3: Any, tiny: Artifact, adapter: Artifact, tmp_path: Path, where: str
) -> None:
    """T8: SIGKILL at random moments; as many as FRESHET_TEST_KILLS (50), a tenth on s3."""
    for name, artifact in {
        "gguf": tiny,
        "adapter": adapter,
        "first": write_report(tmp_path / "r1", adapter),
        "judged": write_report(tmp_path / "r2", adapter, champion=adapter.fingerprint),
    }.items():
        (tmp_path / "work").mkdir(exist_ok=True)
        (tmp_path / "work" / name).symlink_to(artifact.path)
    url, kills = (URL, max(5, KILLS // 10)) if where == "s3" else (str(tmp_path / "registry"), KILLS)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.pipelines.release.publishing_kills", url, str(kills), str(tmp_path / "work")],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    print(where, ran.stdout)
    found = json.loads(ran.stdout)
    assert found["killed"] == kills


def test_a_publisher_that_lost_its_lock_moves_nothing(
    s3: Any, tiny: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T16: also where it does not know yet; the pointer is compared before it moves."""
    monkeypatch.setattr(storage, "LEASE_SECONDS", 0.3)
    slow, quick = open_storage(URL, USE_CASE), open_storage(URL, USE_CASE)
    assert isinstance(slow, ObjectStorage)
    monkeypatch.setattr(slow, "_renew", lambda *_: None)  # as if its machine slept
    with slow.alone():
        time.sleep(0.1)
        with quick.alone():
            quick.point(b"{}", None)
        with pytest.raises(LockedError, match="was moved by another publisher"):
            slow.point(b"[]", None)
    with quick.alone(), monkeypatch.context() as patch:
        patch.setattr(storage, "LOCK_SECONDS", 0.5)  # renewed, so never taken over
        with pytest.raises(LockedError, match="another publisher holds"):
            slow.alone().__enter__()
    with quick.alone():
        s3.put_object(Bucket="models", Key="registry/notices/lock.json", Body=b'{"id": "another"}')
        time.sleep(0.3)
        with pytest.raises(LockedError, match="ran out"):
            quick.point(b"[]", quick.token())


def test_leftovers_of_killed_publishers_are_removed_after_a_day(
    s3: Any, tiny: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path
) -> None:
    for number, age in ((1, 100_000), (2, 10)):
        s3.put_object(Bucket="models", Key=f"registry/notices/v{number}/x.gguf", Body=b"half")
        claim = f"owner {time.time() - age:.0f}".encode()
        s3.put_object(Bucket="models", Key=f"registry/notices/claims/v{number}", Body=claim)
    assert publish(tiny, adapter, report, use_case=USE_CASE, registry_url=URL).version == "v3"
    assert [key for key in keys(s3) if key.endswith("x.gguf")] == ["registry/notices/v2/x.gguf"]
    old = tmp_path / "cache" / "registry" / ("0" * 64)
    old.mkdir()
    os.utime(old, (0, 0))
    (only,) = versions(URL, USE_CASE)
    only.fetch("README.md")
    assert not old.exists()


def test_a_store_without_conditional_writes_is_served_too(
    tiny: Artifact, adapter: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T17: fsspec's own memory, which knows no conditions."""
    import fsspec

    monkeypatch.setattr(storage, "SETTLE_SECONDS", 0.02)
    monkeypatch.setenv("FRESHET_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    url = "memory://registry"
    try:
        publish_all(tiny, adapter, tmp_path, url, 2)
        assert rollback(url, USE_CASE).version == "v1"
        (first, _) = versions(url, USE_CASE)
        assert load(first.fetch()).manifest == first.manifest
        with open_storage(url, USE_CASE).alone():
            monkeypatch.setattr(storage, "LOCK_SECONDS", 0.1)
            with pytest.raises(LockedError, match="another publisher"):
                promote(url, USE_CASE, "v2")
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("how", ["ignores", "refuses"])
def test_an_s3_that_knows_no_conditions_is_noticed(
    s3: Any, tiny: Artifact, adapter: Artifact, report: Artifact, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    import s3fs
    from botocore.exceptions import ClientError

    async def without(self: Any, method: str, *arguments: Any, **given: Any) -> Any:
        conditions = {name for name in given if name in ("IfNoneMatch", "IfMatch")}
        if conditions and how == "refuses":
            error = OSError("not implemented")
            error.__cause__ = ClientError({"Error": {"Code": "NotImplemented"}}, method)
            raise error
        return await call(self, method, *arguments, **{key: given[key] for key in given.keys() - conditions})

    call = s3fs.S3FileSystem._call_s3
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", fsspec_sync(without))
    monkeypatch.setattr(storage, "SETTLE_SECONDS", 0.02)
    assert publish(tiny, adapter, report, use_case=USE_CASE, registry_url=URL).version == "v1"
    served = champion(URL, USE_CASE)
    assert served is not None
    served.fetch()


def fsspec_sync(coroutine: Any) -> Any:
    from fsspec.asyn import sync_wrapper

    return sync_wrapper(coroutine)


class GoogleStorage(BaseHTTPRequestHandler):
    """The calls of Google's JSON API that a registry needs, with generations."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, tuple[bytes, int]]] = {}
    lock = threading.Lock()

    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).split("/o/", 1)[1]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if "/o/" in url.path:
            if (found := self.objects.get(self._name())) is None:
                return self.answer(404, {"error": {"code": 404, "message": "no such object"}})
            return self.answer(200, found[0] if query.get("alt") == "media" else self.described(self._name()))
        if not url.path.endswith("/o"):
            return self.answer(200, {"kind": "storage#bucket", "name": "models"})
        names = sorted(name for name in self.objects if name.startswith(query.get("prefix", "")))
        if query.get("delimiter"):
            names = [name for name in names if "/" not in name[len(query.get("prefix", "")) :]]
        return self.answer(200, {"kind": "storage#objects", "items": [self.described(name) for name in names]})

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if url.path == "/resume":
            return self.resumed(query["name"], body)
        if query["uploadType"] == "resumable":
            return self.answer(200, b"", location=f"http://{self.headers['Host']}/resume?name={quote(query['name'])}")
        if query["uploadType"] == "multipart":
            _, head, rest = body.split(b"--==0==", 2)
            name = json.loads(head.split(b"\n\n", 1)[1])["name"]
            body = rest.split(b"\n\n", 1)[1].removesuffix(b"\n--==0==--")
        else:
            name = query["name"]
        with self.lock:
            now = self.objects.get(name, (b"", 0))[1]
            if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != now:
                return self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            GoogleStorage.objects[name] = (body, time.monotonic_ns())
        return self.answer(200, self.described(name))

    def resumed(self, name: str, body: bytes) -> None:
        start, end, total = map(int, re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", self.headers["Content-Range"]).groups())
        assert (start, end + 1) == (0, total), "these files go in one piece"
        GoogleStorage.objects[name] = (body, time.monotonic_ns())
        self.answer(200, self.described(name))

    def do_DELETE(self) -> None:
        found = GoogleStorage.objects.pop(self._name(), None)
        self.answer(204 if found else 404, b"")

    def described(self, name: str) -> dict[str, Any]:
        import base64

        data, generation = self.objects[name]
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()  # noqa: S324 what Google's API says
        return {
            "name": name, "bucket": "models", "size": str(len(data)), "md5Hash": md5, "generation": str(generation),
            "updated": "2026-05-01T12:00:00.000Z", "contentType": "application/octet-stream",
        }  # fmt: skip

    def answer(self, status: int, body: Any, location: str = "") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        total = len(data)
        if self.headers.get("Range") and isinstance(body, bytes):
            start, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            data, status = data[int(start) : int(end or total) + 1], 206
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(data) - 1}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def test_google_cloud_storage_holds_a_registry_by_generations(
    tiny: Artifact, adapter: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T17: against the little of its JSON API that is used."""
    import gcsfs

    server = ThreadingHTTPServer(("127.0.0.1", 0), GoogleStorage)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("FRESHET_CACHE", str(tmp_path / "cache"))
    gcsfs.GCSFileSystem.clear_instance_cache()
    GoogleStorage.objects = {}
    url = "gs://models/registry"
    try:
        publish_all(tiny, adapter, tmp_path, url, 2)
        assert [each.version for each in versions(url, USE_CASE)] == ["v1", "v2"]
        token = pointer_token(url, USE_CASE)
        assert rollback(url, USE_CASE).version == "v1"
        assert pointer_token(url, USE_CASE) != token
        first = versions(url, USE_CASE)[0]
        assert load(first.fetch()).manifest == first.manifest
        store = open_storage(url, USE_CASE)
        assert isinstance(store, ObjectStorage)
        with store.alone():
            assert store._conditional
            with pytest.raises(LockedError, match="was moved"):
                store.point(b"{}", token)
    finally:
        server.shutdown()
        server.server_close()
        gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.mark.parametrize("where", ["local", "s3"])
def test_the_last_versions_are_kept_and_what_is_served(
    s3: Any, tiny: Artifact, adapter: Artifact, tmp_path: Path, where: str
) -> None:
    """T17: never the served one nor the one that a rollback would serve, and numbers are not given again."""
    url = URL if where == "s3" else str(tmp_path / "registry")
    said: list[str] = []
    publish_all(tiny, adapter, tmp_path, url, 3)
    promote(url, USE_CASE, "v1")
    judged = write_report(tmp_path / "judged", adapter, champion=adapter.fingerprint)
    given: dict[str, Any] = {"use_case": USE_CASE, "registry_url": url, "keep": 1}
    publish(variant(tiny, tmp_path, 9), adapter, judged, **given, progress=said.append)
    assert [each.version for each in versions(url, USE_CASE)] == ["v1", "v4"]
    assert said[1:] == [f"removed {url}/notices/v{number}: more versions than are kept" for number in (2, 3)]
    assert rollback(url, USE_CASE).version == "v1"
    with pytest.raises(NotBuiltError, match="champions before it: none"):  # v2 and v3 are gone
        rollback(url, USE_CASE)
    publish(variant(tiny, tmp_path, 10), adapter, judged, **given)
    assert [each.version for each in versions(url, USE_CASE)] == ["v1", "v5"]
    left = keys(s3) if where == "s3" else [str(path) for path in (tmp_path / "registry").rglob("*")]
    assert not [name for name in left if re.search("/.?v[234]/", name)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("file://server/share", "cannot hold a registry"),
        ("https://example.org/x", "cannot hold a registry"),
        ("s3://", "cannot hold a registry"),
        ("gopher://models/x", "cannot be used"),
        ("s3://key:secret@bucket/models", "holds a user, a password or options"),
        ("s3://bucket/models?token=secret", "holds a user, a password or options"),
        ("zip://x::s3://bucket/a.zip", "cannot hold a registry"),
    ],
)
def test_a_url_that_can_hold_no_registry_is_refused_with_what_can(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        champion(wrong, USE_CASE)
    assert "s3://bucket/path" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_path_and_a_file_url_are_one_local_registry(tmp_path: Path) -> None:
    for url in (str(tmp_path / "a b"), (tmp_path / "a b").as_uri()):
        opened = open_storage(url, USE_CASE)
        assert isinstance(opened, LocalStorage)
        assert opened.folder == tmp_path / "a b" / USE_CASE


def test_a_store_that_cannot_be_read_is_never_an_empty_registry(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """T13: no bucket, no permission, no server."""
    import s3fs

    with pytest.raises(ConfigError, match="nowhere/registry/notices does not exist"):
        versions("s3://nowhere/registry", USE_CASE)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ServerUnavailableError, match="cannot be used now"):
        champion(URL, USE_CASE)
