"""The feedback endpoint, as a process of its own on this machine."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.catalog import feedback, open_catalog
from pipelines.feedback import LARGEST_BODY

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-the-tests-own"
EVERYWHERE = "0.0.0.0"  # noqa: S104 what has to be refused
REPORT = {"use_case": "chat", "question": "Is the pump loud?", "answer": "Very.", "thumb": "up"}
USE_CASES = {
    "chat": "{name: chat, labels: {feedback: true, personal_data: mask}, "
    "fine_tune: {task: generate, base_model: some/base}}",
    "mail": "{name: mail, labels: {feedback: true, categories: [billing, shipping]}}",
    "ask": "{name: ask, sources: [{name: docs, type: folder, url: docs}]}",
}


class Server:
    """The process, and what its catalog holds."""

    def __init__(self, folder: Path, token: str | None) -> None:
        for name, attributes in USE_CASES.items():
            (folder / "use_cases" / name).mkdir(parents=True)
            written = f"type: pipelines.use_case.UseCase\nattributes: {attributes}\n"
            (folder / "use_cases" / name / "defs.yaml").write_text(written)
        self.folder, self.home, self.token = folder, folder / "home", token
        self.log = folder / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        arguments = [sys.executable, "-m", "pipelines.feedback", "--port", str(self.port)]
        arguments += ["--use-cases", str(self.folder / "use_cases")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(arguments, cwd=ROOT, env=self.environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                assert self.get("/health") == (200, {"status": "ok"})
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError(self.log.read_text())

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "FRESHET_DATA")}
        return {**kept, "FRESHET_HOME": str(self.home), "FRESHET_FEEDBACK_TOKEN": self.token or ""}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def get(self, path: str) -> tuple[int, Any]:
        return self.send("GET", path, None, {})

    def post(self, body: Any, **headers: str) -> tuple[int, Any]:
        sent = {"Content-Type": "application/json"}
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send("POST", "/feedback", body if isinstance(body, bytes) else json.dumps(body).encode(), sent)

    def send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.startswith("{") else text
        finally:
            connection.close()

    def stored(self, feedback_id: str) -> dict[str, Any] | None:
        catalog = open_catalog(f"sqlite:///{self.home / 'catalog.db'}")
        try:
            with catalog.connect() as connection:
                query = sa.select(feedback).where(feedback.c.feedback_id == feedback_id)
                row = connection.execute(query).mappings().one_or_none()
                return None if row is None else dict(row)
        finally:
            catalog.dispose()


def serve(folder: Path, token: str | None) -> Iterator[Server]:
    server = Server(folder, token)
    server.start()
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve(tmp_path_factory.mktemp("with_token"), TOKEN)


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without a token: from this machine only."""
    yield from serve(tmp_path_factory.mktemp("without_token"), None)


def test_a_report_is_stored_with_everything_that_it_says(server: Server) -> None:
    sent = {
        "use_case": "chat",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Is the pump loud? Tell zelda.harkness@brightmail.com"},
        ],
        "answer": "Very.",
        "correction": "No, it hums.",
        "thumb": "down",
        "context": ["The pump hums."],
        "version": "v7",
        "conversation": "c-1",
        "author": "ann",
        "id": "f-1",
    }
    assert server.post(sent) == (201, {"id": "f-1", "new": True})
    assert server.post(sent) == (200, {"id": "f-1", "new": False})
    row = server.stored("f-1")
    assert row is not None
    assert row.pop("received_at").tzinfo is not None
    masked = row.pop("messages")
    assert "zelda" not in json.dumps(masked), "the use case masks personal data"
    assert [turn["role"] for turn in masked] == ["system", "user"]
    assert row == {
        "use_case": "chat", "feedback_id": "f-1", "answer": "Very.", "correction": "No, it hums.", "labels": None,
        "thumb": -1, "context": ["The pump hums."], "version": "v7", "conversation": "c-1", "author": "ann",
        "origin": "human",
    }  # fmt: skip
    status, answer = server.post({**sent, "thumb": "up"})
    assert (status, answer["error"][:30]) == (409, "feedback 'f-1' is known with a")


def test_a_report_without_an_id_gets_one_and_each_counts(server: Server) -> None:
    (one, first), (other, second) = server.post(REPORT), server.post(REPORT)
    assert (one, other) == (201, 201)
    assert first["id"] != second["id"]
    assert server.stored(first["id"]) is not None


def test_labels_are_reported_where_a_model_classifies(server: Server) -> None:
    given = {"use_case": "mail", "question": "Where is it?", "answer": "billing", "id": "m-1"}
    assert server.post({**given, "labels": ["shipping"]})[0] == 201
    assert server.stored("m-1")["labels"] == ["shipping"]  # type: ignore[index]
    for labels, said in ((["returns"], "'returns' is not one of billing, shipping"), ([], "one label is wanted")):
        status, answer = server.post({**given, "labels": labels})
        assert (status, said in answer["error"]) == (422, True), answer
    status, answer = server.post({**given, "correction": "returns"})
    assert (status, "'returns' is not one of" in answer["error"]) == (422, True)
    assert server.post({**given, "correction": "billing", "id": "m-2"})[0] == 201
    status, answer = server.post({**REPORT, "labels": ["billing"]})
    assert (status, "send correction instead" in answer["error"]) == (422, True)
    assert server.post({**REPORT, "use_case": "ask"})[0] == 201, "retrieval alone has answers too"


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer \xe9"]
)
def test_without_the_token_nothing_is_taken(server: Server, header: str | None) -> None:
    headers = {"Content-Type": "application/json"} | ({} if header is None else {"Authorization": header})
    status, answer = server.send("POST", "/feedback", json.dumps(REPORT).encode(), headers)
    assert status == 401
    assert TOKEN not in answer["error"]


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"use_case": "sales"}, 404, "no use case 'sales'; there are: ask, chat, mail"),
        ({"use_case": "../chat"}, 404, "no use case"),
        ({"use_case": 7}, 422, "use_case: Input should be a valid string, not 7"),
        ({"thumb": "sideways"}, 422, "'up', 'down', 1 or -1, not 'sideways'"),
        ({"thumb": None}, 422, "give a correction, labels, or a thumb"),
        ({"answer": None}, 422, "a thumb up needs the answer"),
        ({"question": None}, 422, "give either question or messages"),
        ({"question": ""}, 422, "question: String should have at least 1 character"),
        ({"messages": []}, 422, "give either question or messages"),
        ({"question": None, "messages": [{"role": "robot", "content": "x"}]}, 422, "messages.0.role: Input should be"),
        (
            {"question": None, "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            422,
            "the last turn is the user's",
        ),
        ({"correction": "a", "labels": ["b"]}, 422, "give either correction or labels"),
        ({"coment": "x"}, 422, "coment: unknown; fields are use_case, question"),
        ({"origin": "robot"}, 422, "origin: Input should be 'human', 'rule' or 'model', not 'robot'"),
        ({"id": "x" * 65}, 422, "id: String should match pattern"),
        ({"id": "a b"}, 422, "not 'a b'"),
        ({"context": "one text"}, 422, "context: Input should be a valid list, not 'one text'"),
        ({"conversation": "c" * 300}, 422, "at most 256 characters"),
    ],
)
def test_what_is_wrong_is_quoted_with_what_is_allowed(
    server: Server, change: dict[str, Any], status: int, said: str
) -> None:
    found, answer = server.post({**REPORT, **change})
    assert found == status
    assert said in answer["error"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b'{"use_case": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[]", "Input should be a valid dictionary"),
        (b"", "the body is not JSON"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(server: Server, body: bytes, said: str) -> None:
    status, answer = server.post(body)
    assert status == 422
    assert said in answer["error"]


def test_a_body_that_is_too_large_is_refused_announced_or_not(server: Server) -> None:
    large = json.dumps({**REPORT, "answer": "x" * LARGEST_BODY}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        head = f"POST /feedback HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(large)}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(1000)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        chunked = head.partition("Content-Length")[0] + "Transfer-Encoding: chunked\r\n\r\n"
        connection.sendall(chunked.encode())
        piece = b"%x\r\n%b\r\n" % (65536, b" " * 65536)
        for _ in range(LARGEST_BODY // 65536 + 1):
            connection.sendall(piece)
        assert b" 413 " in connection.recv(1000)
    fits = {**REPORT, "answer": "x" * (LARGEST_BODY - 200)}
    assert server.post(fits)[0] == 201


def test_only_json_is_taken_and_only_by_post(server: Server) -> None:
    status, answer = server.post(REPORT, Content_Type="text/plain")
    assert (status, "application/json" in answer["error"]) == (415, True)
    assert server.get("/feedback")[0] == 405
    assert server.get("/")[0] == 404


def test_without_a_token_pages_of_other_sites_cannot_report(open_server: Server) -> None:
    """DNS rebinding (Host) and cross-site requests (Origin)."""
    own = {"Host": f"localhost:{open_server.port}", "Origin": f"http://127.0.0.1:{open_server.port}"}
    assert open_server.post(REPORT, **own)[0] == 201
    assert open_server.post(REPORT)[0] == 201
    for headers in (
        {"Host": f"attacker.example:{open_server.port}"},
        {"Host": ""},
        {"Origin": "https://attacker.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.attacker.example"},
        {"Origin": "http://[broken"},
    ):
        status, answer = open_server.post(REPORT, **headers)
        assert status == 403, headers
        assert "without a token" in answer["error"]


def test_many_reports_at_once_are_all_stored_once(server: Server) -> None:
    reports = [{**REPORT, "id": f"many-{number % 20}"} for number in range(60)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(server.post, reports))
    assert {status for status, _ in answers} == {200, 201}
    assert sum(answer["new"] for _, answer in answers) == 20


def test_a_new_use_case_is_known_at_once(server: Server) -> None:
    folder = server.folder / "use_cases" / "sales"
    folder.mkdir()
    (folder / "defs.yaml").write_text("attributes: {name: sales, labels: {feedback: true}}")
    try:
        assert server.post({**REPORT, "use_case": "sales"})[0] == 201
        (folder / "defs.yaml").write_text("attributes: {name: sales, labels: {feedback: 7, url: secret}}")
        status, answer = server.post({**REPORT, "use_case": "sales"})
        assert (status, "secret" in answer["error"]) == (503, False)
    finally:
        (folder / "defs.yaml").unlink()


def test_the_log_says_what_came_without_what_is_secret(server: Server) -> None:
    server.post({**REPORT, "id": "logged-1", "answer": "an answer of a private kind"})
    server.send("POST", f"/feedback?token={TOKEN}", b"{}", {"Authorization": TOKEN})
    log = server.log.read_text()
    assert "feedback logged-1 of chat stored" in log
    assert TOKEN not in log
    assert "private kind" not in log
    assert "Traceback" not in log


def test_it_ends_when_told_to_and_keeps_what_it_took(tmp_path: Path) -> None:
    server = Server(tmp_path, None)
    server.start()
    assert server.post({**REPORT, "id": "kept"})[0] == 201
    assert server.stop() in (0, -signal.SIGTERM)
    assert server.stored("kept") is not None


@pytest.mark.parametrize("host", [EVERYWHERE, "192.0.2.1", "::", "example.org"])
def test_it_is_open_to_other_machines_only_with_a_token(host: str, tmp_path: Path) -> None:
    from pydantic import SecretStr

    from pipelines.admission import check_address
    from pipelines.errors import ConfigError

    with pytest.raises(ConfigError, match="set FRESHET_FEEDBACK_TOKEN"):
        check_address(host, None, variable="FRESHET_FEEDBACK_TOKEN")
    check_address(host, SecretStr("x"), variable="FRESHET_FEEDBACK_TOKEN")
    for own in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_address(own, None, variable="FRESHET_FEEDBACK_TOKEN")


def test_it_does_not_start_open_to_others_and_loads_nothing_heavy(tmp_path: Path) -> None:
    kept = {**os.environ, "FRESHET_HOME": str(tmp_path), "FRESHET_FEEDBACK_TOKEN": ""}
    arguments = [sys.executable, "-m", "pipelines.feedback", "--host", EVERYWHERE, "--port", "0"]
    done = subprocess.run(arguments, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "set FRESHET_FEEDBACK_TOKEN" in done.stderr) == (2, True)
    script = """
import sys, pipelines.feedback
heavy = {"torch", "transformers", "great_expectations", "pandas", "numpy", "dagster", "detect_secrets", "phonenumbers"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
