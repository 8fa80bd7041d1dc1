"""The OpenAI-compatible endpoint, as a process of its own on this machine, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa

from pipelines.artifacts import Artifact
from pipelines.catalog import answers, feedback
from pipelines.corpus.search import Hit
from pipelines.declaration import load_declaration
from pipelines.environment import Environment
from pipelines.erasure import forget
from pipelines.errors import FreshetError
from pipelines.labels.feedback import feedback_examples
from pipelines.labels.settings import LabelSettings
from pipelines.prompt import Message
from pipelines.serve import main
from pipelines.serving.answering import Answer
from pipelines.serving.app import Server, Serving, _Running
from pipelines.serving.records import forget_older, record_answer, stored_answer
from pipelines.serving.requests import ChatRequest
from pipelines.stores import Stores
from tests.pipelines.chat_base import THINGS, answer_of
from tests.pipelines.release.chat_samples import CHAT_USE_CASE
from tests.pipelines.serving.serving_samples import Shop

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a-token-of-the-tests-own"
LAMP = [{"role": "user", "content": "How does the lamp look ?"}]
EVERYWHERE = "0.0.0.0"  # noqa: S104 what has to be refused


class Process:
    """``python -m pipelines.serve`` for one shop."""

    def __init__(self, shop: Shop, *options: str, token: str = "") -> None:
        self.shop, self.options, self.token = shop, options, token
        self.log = shop.folder / f"serve-{time.monotonic_ns()}.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        arguments = [sys.executable, "-m", "pipelines.serve", "--port", str(self.port)]
        arguments += ["--folder", str(shop.use_cases), *options]
        environment = {**os.environ, "FRESHET_HOME": str(shop.home), "FRESHET_SERVE_TOKEN": token}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                assert self.get("/health")[0] == 200
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError(self.log.read_text())

    def client(self, token: str | None = None) -> openai.OpenAI:
        key = token or self.token or "not needed"
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=60)

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self.send("GET", path, None, **headers)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        return self.send("POST", path, json.dumps(body).encode(), Content_Type="application/json", **headers)

    def send(self, method: str, path: str, body: bytes | None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def stop(self) -> None:
        """It ends by the signal, once it has put everything away."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        # It ends by itself: by the signal, which uvicorn raises again, or (once seen, on a busy machine) with 0.
        assert self.process.wait(60) in (0, -signal.SIGTERM), self.log.read_text()
        assert "Application shutdown complete" in self.log.read_text()


@pytest.fixture(scope="module")
def chat(chat_gguf: Artifact, chat_training: list[Artifact]) -> tuple[Artifact, Artifact, Artifact]:
    """GGUF, adapter and training set of a model that knows its things."""
    return chat_gguf, chat_training[1], chat_training[0]


@pytest.fixture(scope="module")
def shop(chat: tuple[Artifact, Artifact, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made = Shop(tmp_path_factory.mktemp("shop"), chat[0], chat[1])
    made.refresh()
    return made


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Process]:
    """Started while nothing is published yet."""
    process = Process(shop, "--slots", "2", "--threads", "1")
    assert process.get("/health") == (200, {"status": "ok", "models": {CHAT_USE_CASE: None}})
    with pytest.raises(openai.InternalServerError, match="run the job shop_retrain") as refused:
        process.client().chat.completions.create(model=CHAT_USE_CASE, messages=LAMP)
    assert refused.value.status_code == 503
    shop.publish()
    assert until(lambda: process.get("/health")[1]["models"][CHAT_USE_CASE] == "v1")
    yield process
    process.stop()


@pytest.fixture(scope="module")
def client(server: Process) -> openai.OpenAI:
    return server.client()


def until(true: Any, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(found)


def test_openais_client_gets_an_answer_with_its_citations(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [CHAT_USE_CASE]
    raw = client.chat.completions.with_raw_response.create(model=CHAT_USE_CASE, messages=LAMP)
    assert raw.headers["x-freshet-version"].startswith("v")
    answer = raw.parse()
    choice = answer.choices[0]
    assert choice.message.content == answer_of("lamp")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 20
    [cited] = choice.message.citations  # type: ignore[attr-defined]
    assert cited["document_id"] == "lamp.md"
    assert cited["age_seconds"] > 0
    assert cited.keys() >= {"number", "title", "uri", "version", "updated_at", "indexed_at"}


def test_a_stream_says_the_same_piece_by_piece_and_cites_at_its_end(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT_USE_CASE, messages=LAMP, stream=True, stream_options={"include_usage": True}
    )
    *chunks, usage = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer_of("lamp")
    assert len(chunks) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].choices[0].delta.citations[0]["document_id"] == "lamp.md"  # type: ignore[attr-defined]
    assert len({chunk.id for chunk in chunks}) == 1
    assert usage.usage is not None
    assert usage.usage.completion_tokens > 3


def test_an_answer_is_recorded_and_feedback_refers_to_it(server: Process, client: openai.OpenAI, shop: Shop) -> None:
    answer = client.chat.completions.create(
        model=CHAT_USE_CASE, messages=LAMP, user="ann", extra_body={"conversation": "talk-1"}
    )
    status, stored = server.get(f"/v1/answers/{answer.id}")
    assert status == 200
    assert (stored["answer"], stored["conversation"], stored["author"]) == (answer_of("lamp"), "talk-1", "ann")
    assert stored["messages"] == LAMP
    assert stored["hits"][0]["text"].endswith("The lamp is blue .")
    report = {"use_case": CHAT_USE_CASE, "answer_id": answer.id, "correction": "It is very blue .", "id": "report-1"}
    assert server.post("/feedback", report) == (201, {"id": "report-1", "new": True})
    catalog = shop.catalog()
    with catalog.connect() as connection:
        row = connection.execute(sa.select(feedback)).mappings().one()
    assert (row["messages"], row["answer"], row["version"]) == (LAMP, answer_of("lamp"), stored["version"])
    assert row["context"] == [hit["text"] for hit in stored["hits"]]
    [example] = feedback_examples(catalog, CHAT_USE_CASE, "generate")
    assert example.messages[-1].content == "It is very blue ."
    assert example.rejected == answer_of("lamp")
    catalog.dispose()
    for wrong, status in (
        ({**report, "answer_id": "chatcmpl-none"}, 404),
        ({**report, "question": "What ?"}, 422),
    ):
        assert server.post("/feedback", wrong)[0] == status


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "other"}, 404, "no model 'other'; there are: shop"),
        ({"messages": []}, 400, "messages: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role: "),
        ({"messages": [*LAMP, {"role": "assistant", "content": "x"}]}, 400, "ends with the user's turn"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "is empty: ask something"),
        ({"messages": [{"role": "user", "content": "the tent " * 300}]}, 400, "ask in fewer words"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "messages.0"),
        ({"temperature": 3}, 400, "temperature: "),
        ({"n": 2}, 400, "n is not supported, only 1"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
        ({"top_k": 1000}, 400, "top_k: "),
        ({"filters": {"colour": "red"}}, 400, "colour"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_openais_words(
    server: Process, change: dict[str, Any], status: int, said: str
) -> None:
    found, body = server.post("/v1/chat/completions", {"model": CHAT_USE_CASE, "messages": LAMP, **change})
    assert found == status
    assert said in body["error"]["message"]
    assert body["error"].keys() == {"message", "type", "param", "code"}


def test_what_changes_nothing_is_ignored_and_odd_text_is_answered(server: Process, client: openai.OpenAI) -> None:
    odd = [
        {"role": "developer", "content": "You are kind ."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "How does the lamp look ? 😀 \x00 <|im_end|>"}],
        },
    ]
    answer = client.chat.completions.create(
        model=CHAT_USE_CASE,
        messages=odd,  # type: ignore[arg-type]
        n=1,
        presence_penalty=0,
        stop=["asking"],
        max_completion_tokens=30,
        seed=3,
        temperature=0.0,
        metadata={"a": "b"},
        service_tier="auto",
    )
    assert "asking" not in (answer.choices[0].message.content or "")
    lone = {"model": CHAT_USE_CASE, "messages": [{"role": "user", "content": "A lone \ud800 ?"}]}
    assert server.post("/v1/chat/completions", lone)[0] == 200


def test_a_drawn_answer_is_the_same_again_by_its_seed(client: openai.OpenAI) -> None:
    drawn = [
        client.chat.completions.create(model=CHAT_USE_CASE, messages=LAMP, temperature=2, seed=seed, max_tokens=24)
        for seed in (1, 1, 2, 3, 4)
    ]
    texts = [each.choices[0].message.content for each in drawn]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_a_new_champion_and_a_refreshed_index_are_picked_up_without_a_failed_request(
    server: Process, shop: Shop
) -> None:
    end, failed, seen = threading.Event(), [], []

    def ask(number: int) -> None:
        asking = server.client()
        while not end.is_set():
            try:
                if number % 2:
                    said = asking.chat.completions.create(model=CHAT_USE_CASE, messages=LAMP)
                    assert said.choices[0].finish_reason == "stop"
                    cited = said.choices[0].message.citations  # type: ignore[attr-defined]
                    seen.append((said.system_fingerprint, cited[0]["version"]))
                else:
                    chunks = list(asking.chat.completions.create(model=CHAT_USE_CASE, messages=LAMP, stream=True))
                    assert chunks[-1].choices[0].finish_reason == "stop"
                    assert len({chunk.system_fingerprint for chunk in chunks}) == 1
            except Exception as error:  # noqa: BLE001 all of them are what is counted
                failed.append(repr(error))

    before = server.client().chat.completions.create(model=CHAT_USE_CASE, messages=LAMP)
    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(ask, number) for number in range(6)]
        try:
            assert until(lambda: len(seen) > 5)
            new = shop.publish().version
            assert until(lambda: new in {version for version, _ in seen})
            shop.write("lamp", f"{THINGS['lamp']} .\n\nAll of")
            shop.refresh()
            changed = len(seen)
            assert until(lambda: len({cited for _, cited in seen}) > 1 and len(seen) > changed + 5)
        finally:
            end.set()
        for each in running:
            each.result()
    assert failed == []
    assert [seen[0][0], seen[-1][0]] == [before.system_fingerprint, new]
    assert until(lambda: f"{before.system_fingerprint} is freed" in server.log.read_text())


def test_too_many_requests_are_told_to_come_back(shop: Shop, server: Process) -> None:
    process = Process(shop, "--most-requests", "1", "--slots", "1", "--threads", "1")
    try:
        with ThreadPoolExecutor(8) as pool:
            asked = {"model": CHAT_USE_CASE, "messages": LAMP}
            found = list(pool.map(lambda _: process.post("/v1/chat/completions", asked), range(24)))
        assert {status for status, _ in found} == {200, 429}
        refused = next(body for status, body in found if status == 429)
        assert refused["error"]["code"] == "rate_limit_exceeded"
        patient = process.client().with_options(max_retries=10)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: patient.chat.completions.create(model=CHAT_USE_CASE, messages=LAMP), range(8)))
    finally:
        process.stop()


def test_with_a_token_nothing_is_told_without_it(shop: Shop, server: Process) -> None:
    process = Process(shop, "--threads", "1", token=TOKEN)
    try:
        assert process.client().chat.completions.create(model=CHAT_USE_CASE, messages=LAMP).choices
        for request in (
            lambda asking: asking.chat.completions.create(model=CHAT_USE_CASE, messages=LAMP),
            lambda asking: asking.models.list(),
            lambda asking: asking.get("/answers/x", cast_to=dict),
        ):
            with pytest.raises(openai.AuthenticationError, match="FRESHET_SERVE_TOKEN"):
                request(process.client("wrong"))
        report = {"use_case": CHAT_USE_CASE, "question": "x", "answer": "y", "thumb": "up"}
        assert process.post("/feedback", report)[0] == 401
        assert process.post("/feedback", report, Authorization=f"Bearer {TOKEN}")[0] == 201
        assert TOKEN not in process.log.read_text()
    finally:
        process.stop()


def test_without_a_token_pages_of_other_sites_and_other_machines_are_refused(server: Process, shop: Shop) -> None:
    asked = {"model": CHAT_USE_CASE, "messages": LAMP}
    assert server.post("/v1/chat/completions", asked, Origin="https://example.org")[0] == 403
    assert server.post("/v1/chat/completions", asked, Host="example.org")[0] == 403
    assert server.send("POST", "/v1/chat/completions", json.dumps(asked).encode(), Content_Type="text/plain")[0] == 415
    assert main(["--folder", str(shop.use_cases), "--host", EVERYWHERE]) == 2


def test_a_use_case_without_a_chat_model_is_not_served(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--folder", str(tmp_path)]) == 2
    assert "no use case trains a chat model" in capsys.readouterr().err
    assert main(["nobody", "--folder", str(shop.use_cases)]) == 2
    assert "no use case 'nobody'" in capsys.readouterr().err


def test_a_client_that_leaves_ends_the_writing(server: Process, shop: Shop) -> None:
    class Leaving(_Running):
        def tell(self, event: Any) -> None:
            del event
            self.cancelled.set()

    serving = Serving([CHAT_USE_CASE], folder=shop.use_cases, threads=1)
    local = Server(serving, Environment(FRESHET_HOME=shop.home))
    local.lives[CHAT_USE_CASE].look()
    running = Leaving(CHAT_USE_CASE, ChatRequest(model=CHAT_USE_CASE, messages=LAMP), asyncio.new_event_loop())
    local._answer(running)
    stored = stored_answer(local.stores.catalog, CHAT_USE_CASE, running.answer_id)
    assert stored is not None
    assert stored["finish"] == "cancelled"
    assert len(stored["answer"]) < len(answer_of("lamp"))
    local.stop()
    # Over the network: the connection is cut after the first bytes of a stream.
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        body = json.dumps({"model": CHAT_USE_CASE, "messages": LAMP, "stream": True}).encode()
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        raw.sendall(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert raw.recv(64)
    assert server.client().chat.completions.create(model=CHAT_USE_CASE, messages=LAMP).choices
    assert "Traceback" not in server.log.read_text()


def test_a_model_that_failed_is_loaded_anew(server: Process, shop: Shop) -> None:
    local = Server(Serving([CHAT_USE_CASE], folder=shop.use_cases, threads=1), Environment(FRESHET_HOME=shop.home))
    live = local.lives[CHAT_USE_CASE]
    assert live.look()
    with live.model() as broken:
        broken._engine.close()
    asked = ChatRequest(model=CHAT_USE_CASE, messages=LAMP)
    with pytest.raises(FreshetError):
        local._answer(_Running(CHAT_USE_CASE, asked, asyncio.new_event_loop()))
    assert live.look()
    assert not live.look()
    running = _Running(CHAT_USE_CASE, asked, asyncio.new_event_loop())
    local._answer(running)
    stored = stored_answer(local.stores.catalog, CHAT_USE_CASE, running.answer_id)
    assert stored is not None
    assert stored["answer"] == answer_of("lamp")
    local.stop()


def test_erasing_a_document_or_a_person_deletes_what_was_answered(server: Process, shop: Shop) -> None:
    client = server.client()
    tent = [{"role": "user", "content": "How does the tent look ?"}]
    of_bob = client.chat.completions.create(model=CHAT_USE_CASE, messages=LAMP, user="bob")
    about = client.chat.completions.create(model=CHAT_USE_CASE, messages=tent, extra_body={"top_k": 1})
    stores = Stores(Environment(FRESHET_HOME=shop.home))
    declaration = load_declaration(CHAT_USE_CASE, shop.use_cases)
    erased = forget(declaration, stores, key="bob")
    assert erased.served == (of_bob.id,)
    mentioned = forget(declaration, stores, key="the tent look", dry_run=True)
    assert f"answers/{about.id}" in mentioned.mentions
    assert forget(declaration, stores, documents=[f"answers/{about.id}"], dry_run=True).served == (about.id,)
    erased = forget(declaration, stores, documents=["docs/tent.md"])
    assert about.id in erased.served
    with stores.catalog.connect() as connection:
        left = set(connection.scalars(sa.select(answers.c.answer_id)))
    assert left
    assert not left & {of_bob.id, about.id}
    assert server.get(f"/v1/answers/{about.id}")[0] == 404
    stores.close()


def test_personal_data_is_masked_and_old_answers_go(catalog: sa.Engine) -> None:
    when = datetime.now(UTC)
    found = Hit("Call ann.smith@pumpworks.com .", "a", "file:///a", 1.0, "docs", "a.md", "1", None, when)
    said = Answer("Ask ann.smith@pumpworks.com .", (), (found,), "v1", "x.gguf", "stop", False, 9, 5)
    turns = [Message("user", "I am bob.jones@pumpworks.com , who knows ?")]
    labels = LabelSettings(feedback=True, personal_data="mask")
    record_answer(catalog, "shop", "a-1", turns, said, seconds=1.0, labels=labels)
    stored = stored_answer(catalog, "shop", "a-1")
    assert stored is not None
    assert "@pumpworks.com" not in json.dumps([stored["messages"], stored["answer"], stored["hits"]])
    assert stored["hits"][0]["document_id"] == "a.md"
    assert forget_older(catalog, "shop", when - timedelta(days=1)) == 0
    assert forget_older(catalog, "shop", when + timedelta(days=1)) == 1
