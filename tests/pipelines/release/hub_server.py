"""A small Hub on loopback that takes nothing on trust: what the client of huggingface_hub asks of the real one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_written_for_tests_only"
LFS = "application/vnd.git-lfs+json"


@dataclass(frozen=True)
class Blob:
    data: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """As preupload tells it: SHA-256 of a large file, git's SHA-1 of another."""
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data, usedforsecurity=False).hexdigest()

    def described(self) -> dict[str, Any]:
        size = len(self.data)
        large = {"lfs": {"sha256": self.oid, "size": size, "pointerSize": 134}} if self.lfs else {}
        return {"blobId": "0" * 40 if self.lfs else self.oid, "size": size, **large}


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, Blob]


@dataclass
class Repository:
    private: bool
    commits: list[Commit] = field(default_factory=list)
    """The newest last."""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        revision = self.tags.get(revision, revision)
        if revision == "main":
            return self.head
        return next((commit for commit in self.commits if commit.oid == revision), None)

    def add(self, title: str, files: dict[str, Blob]) -> Commit:
        self.commits.append(Commit(secrets.token_hex(20), title, files))
        return self.head


class RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        """Large files whose upload was verified, by SHA-256."""
        self.arrived: dict[str, bytes] = {}
        self.signatures: dict[str, str] = {}
        self.puts: list[str] = []
        self.asked: list[str] = []
        self.fails: dict[str, int] = {}
        """Status to answer with, by a part of "METHOD /path"."""
        self.hang_at_put: int | None = None
        """Never answer this upload (counted from 0)."""
        self.hanging = threading.Event()
        self.lose_answer_of_commit = False
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def make(self, name: str, *, private: bool, files: dict[str, bytes] | None = None) -> Repository:
        found = self.repositories[name] = Repository(private)
        found.add("initial commit", {path: Blob(data, False) for path, data in (files or {}).items()})
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815 names of http.server

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        path = unquote(urlsplit(self.path).path)
        asked = f"{self.command} {path}"
        self.server.asked.append(asked)
        try:
            self._fail_where_told(asked)
            if path.startswith("/storage/"):
                self._store(path.removeprefix("/storage/"), body)
            else:
                self._check_token()
                self._route(path, body)
        except RefusedError as refused:
            self._send(
                refused.status,
                {"error": str(refused), **refused.more},
                **{"X-Error-Message": str(refused), **({"X-Error-Code": refused.code} if refused.code else {})},
            )

    def _fail_where_told(self, asked: str) -> None:
        if status := next((status for part, status in self.server.fails.items() if part in asked), None):
            raise RefusedError(status, "told to fail")

    def _check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise RefusedError(401, "Invalid credentials in Authorization header")

    def _route(self, path: str, body: bytes) -> None:
        if self.command == "POST" and path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.command == "POST" and path == "/api/validate-yaml":
            return self._validate(json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify)", path):
            self._repository(found[1])
            return self._large(found[2], json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(self._repository(found[1]), found[2], found[3])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/([^/]+))?)?", path):
            repository, what, revision = self._repository(found[1]), found[2], found[3]
            match (self.command, what):
                case ("GET", None | "revision"):
                    commit = self._commit(repository, revision or "main")
                    blobs = parse_qs(urlsplit(self.path).query).get("blobs") is not None
                    return self._send(
                        200,
                        {
                            "id": found[1],
                            "sha": commit.oid,
                            "private": repository.private,
                            "siblings": [
                                {"rfilename": name, **(blob.described() if blobs else {})}
                                for name, blob in commit.files.items()
                            ],
                        },
                    )
                case ("GET", "refs"):
                    tags = [
                        {"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid}
                        for name, oid in repository.tags.items()
                    ]
                    return self._send(200, {"branches": [], "converts": [], "tags": tags})
                case ("GET", "commits"):
                    when = "2026-01-01T00:00:00.000Z"
                    return self._send(
                        200,
                        [
                            {"id": one.oid, "title": one.title, "message": "", "date": when, "authors": []}
                            for one in reversed(repository.commits)
                        ],
                    )
                case ("POST", "preupload"):
                    return self._preupload(self._commit(repository, revision), json.loads(body))
                case ("POST", "commit"):
                    return self._add(found[1], repository, revision, body)
                case ("POST", "tag"):
                    tag, commit = json.loads(body)["tag"], self._commit(repository, revision)
                    if tag in repository.tags:
                        raise RefusedError(409, f"Tag {tag} exists")
                    repository.tags[tag] = commit.oid
                    return self._send(200, {})
        raise RefusedError(404, f"no such address: {self.command} {path}")

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repositories:
            raise RefusedError(409, "You already created this model repo", url=f"{self.server.url}/{name}")
        visibility = wanted["visibility"]
        assert visibility in ("private", "public")
        self.server.make(name, private=visibility == "private", files={".gitattributes": b"*.gguf filter=lfs\n"})
        self._send(200, {"url": f"{self.server.url}/{name}"})

    def _validate(self, wanted: dict[str, Any]) -> None:
        import yaml

        front = re.match(r"---\n(.*?)\n---\n", wanted["content"], re.DOTALL)
        data = yaml.safe_load(front[1]) if front else {}
        # Of what the real one checks: values that have to be a model's id, and results that have to be whole.
        wrong = [
            key
            for key in ("base_model", "new_version")
            if key in data and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(data[key]))
        ]
        for model in data.get("model-index", []):
            wrong += [
                "model-index"
                for result in model["results"]
                if not result["task"]["type"]
                or not {"name", "type"} <= result["dataset"].keys()
                or not all({"type", "value"} <= metric.keys() for metric in result["metrics"])
            ]
        errors = [{"message": f'"{key}" is not valid'} for key in wrong]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self, commit: Commit, wanted: dict[str, Any]) -> None:
        answers = []
        for file in wanted["files"]:
            sample = base64.b64decode(file["sample"], validate=True)
            if len(sample) != min(512, file["size"]):
                raise RefusedError(400, "a sample is the first 512 bytes")
            large = file["path"].endswith((".gguf", ".safetensors"))
            there = commit.files.get(file["path"])
            ignored = commit.files[".gitignore"].data.decode().split() if ".gitignore" in commit.files else []
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": any(fnmatch(file["path"], pattern) for pattern in ignored),
                    **({"oid": there.oid} if there else {}),
                }
            )
        self._send(200, {"files": answers})

    def _large(self, what: str, wanted: dict[str, Any]) -> None:
        server = self.server
        if what == "verify":
            oid = wanted["oid"]
            if len(server.arrived.get(oid, b"")) != wanted["size"]:
                raise RefusedError(404, "nothing to verify")
            server.stored[oid] = server.arrived.pop(oid)
            return self._send(200, {})
        if self.headers["Accept"] != LFS or wanted["operation"] != "upload" or wanted["hash_algo"] != "sha256":
            raise RefusedError(422, "not a question of git-lfs")
        objects: list[dict[str, Any]] = []
        for file in wanted["objects"]:
            answer = {"oid": file["oid"], "size": file["size"]}
            if file["oid"] not in server.stored:
                signature = server.signatures[file["oid"]] = secrets.token_hex(8)
                base = self.path.removesuffix("/batch")
                answer["actions"] = {
                    "upload": {"href": f"{server.url}/storage/{file['oid']}?signature={signature}"},
                    "verify": {"href": f"{server.url}{base}/verify"},
                }
            objects.append(answer)
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str, body: bytes) -> None:
        server = self.server
        signature = parse_qs(urlsplit(self.path).query).get("signature", [""])[0]
        if self.command != "PUT" or signature != server.signatures.get(oid):
            raise RefusedError(403, "the signature does not match")
        if self.headers.get("Authorization"):
            raise RefusedError(400, "the token is not for the storage")
        server.puts.append(oid)
        if server.hang_at_put == len(server.puts) - 1:
            server.hanging.set()
            threading.Event().wait()
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400, "wrong digest")
        server.arrived[oid] = body
        return self._send(200, {})

    def _add(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        if self.headers["Content-Type"] != "application/x-ndjson" or revision != "main":
            raise RefusedError(400, "not a commit")
        first, *lines = [json.loads(line) for line in body.splitlines()]
        if first["key"] != "header" or not first["value"]["summary"]:
            raise RefusedError(400, "the header comes first")
        if first["value"].get("parentCommit", repository.head.oid) != repository.head.oid:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.head.files)
        for line in lines:
            value = line["value"]
            path = value["path"]
            match line["key"]:
                case "file":
                    if path.endswith((".gguf", ".safetensors")):
                        raise RefusedError(400, f"{path} has to be a large file")
                    files[path] = Blob(base64.b64decode(value["content"], validate=True), False)
                case "lfsFile":
                    data = self.server.stored.get(value["oid"])
                    if value["algo"] != "sha256" or data is None or len(data) != value["size"]:
                        raise RefusedError(400, f"the content of {path} was not uploaded")
                    files[path] = Blob(data, True)
                case "deletedFile":
                    if files.pop(path, None) is None:
                        raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
                case other:
                    raise RefusedError(400, f"unknown key {other}")
        commit = repository.add(first["value"]["summary"], files)
        if self.server.lose_answer_of_commit:
            self.close_connection = True
            return None
        url = f"{self.server.url}/{name}/commit/{commit.oid}"
        return self._send(200, {"success": True, "commitOid": commit.oid, "commitUrl": url})

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        commit = self._commit(repository, revision)
        blob = commit.files.get(path)
        if blob is None:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        self.send_response(200)
        self.send_header("ETag", f'"{blob.oid}"')
        self.send_header("X-Repo-Commit", commit.oid)
        self.send_header("Content-Length", str(len(blob.data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(blob.data)

    def _repository(self, name: str) -> Repository:
        if name not in self.server.repositories:
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return self.server.repositories[name]

    def _commit(self, repository: Repository, revision: str) -> Commit:
        found = repository.at(revision)
        if found is None:
            raise RefusedError(404, "Revision not found", "RevisionNotFound")
        return found

    def _send(self, status: int, answer: object, **headers: str) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
