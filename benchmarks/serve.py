"""Serving under load: 32 clients for a minute, while another version is promoted and the index is refreshed.

    python -m benchmarks.serve [--json FILE] [--quick] [--clients 32] [--seconds 60]

A Llama with random weights (25 M parameters, Q8_0) in a registry of its own answers questions on 200 made documents, 48
tokens each: what it says means nothing, what it costs is real. Every other request streams. At a third of the time the
second version is promoted, at two thirds a tenth of the documents is changed and the index refreshed by another
process. Counted as failed: any status but 200, a connection that breaks, an answer or a stream without its
end. Contenders take turns on the same machine, each a server process of its own:

- ``freshet``: ``python -m pipelines.serve --slots 8``;
- ``freshet, one at a time``: the same with one slot, as a program with a lock around its model answers;
- ``llama_cpp.server``: llama-cpp-python's own, which is sent the same prompts ready made: it searches for nothing, and
  nothing is promoted or refreshed; a missing one is reported as such.

``--quick``: 6 seconds and 8 clients.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import yaml

from benchmarks.report import report
from pipelines.artifacts import seal
from pipelines.basemodel.language import Draw, texts_and_facts
from pipelines.basemodel.tokenizer import save_tokenizer, train_tokenizer
from pipelines.catalog import open_catalog
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.search import retrieved_texts
from pipelines.corpus.serving import serve_index
from pipelines.corpus.sync import sync_source
from pipelines.declaration import load_declaration
from pipelines.environment import REPOSITORY, available_cores
from pipelines.fingerprint import fingerprint, text_hash
from pipelines.prompt import Message, PromptSettings, build_messages
from pipelines.release.gguf import convert, quantise
from pipelines.release.registry import promote

USE_CASE = "load"
DOCUMENTS = 200
QUESTIONS = 200
ANSWER_TOKENS = 48
CONTEXT_TOKENS = 1024
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
VOCABULARY = 4096
PROMPT = PromptSettings(context_tokens=512)

PEER = """
import runpy
import llama_cpp.llama_cpp as bindings
usual = bindings.llama_model_default_params
def parameters():
    found = usual()
    found.use_extra_bufts = False
    return found
bindings.llama_model_default_params = parameters
runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=True)
"""
"""llama-cpp-python's server, without the repacking for AMX that crashes the process (ggml-org/llama.cpp#20824)."""


@dataclass(slots=True)
class Load:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    """Of each whole answer."""
    first: list[float] = field(default_factory=list)
    """To the first words of each stream."""
    versions: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    elapsed: float = 0.0
    """From the first question to the last answer (s)."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write rows and figures to this file")
    parser.add_argument("--quick", action="store_true", help="6 seconds and 8 clients")
    parser.add_argument("--clients", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--refresh", type=Path, help=argparse.SUPPRESS)  # what a process of ``measure`` does
    given = parser.parse_args()
    if given.refresh:
        refresh(given.refresh)
        return
    clients, seconds = given.clients or (8 if given.quick else 32), given.seconds or (6.0 if given.quick else 60.0)
    with tempfile.TemporaryDirectory() as scratch:
        rows, figures = measure(Path(scratch), clients, seconds)
    packages = ["llama-cpp-python", "starlette", "uvicorn", "qdrant-edge-py", "openvino", "torch"]
    report("serve", rows, figures, packages=packages, json_file=given.json, clients=clients, seconds=seconds)


def measure(scratch: Path, clients: int, seconds: float) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each contender; the figures are ours, and how much faster we are than the others."""
    print("making a model, two versions of it and an index", flush=True)
    questions = make_home(scratch)
    rows = []
    for name, slots in (("freshet", 8), ("freshet, one at a time", 1)):
        print(f"{name}: {clients} clients for {seconds:g} s", flush=True)
        rows.append({"contender": name, **ours(scratch, questions, slots, clients, seconds)})
    if find_spec("fastapi") is None or find_spec("sse_starlette") is None:
        rows.append({"contender": "llama_cpp.server", "note": "not installed: llama-cpp-python[server]"})
    else:
        print(f"llama_cpp.server: {clients} clients for {seconds:g} s", flush=True)
        rows.append({"contender": "llama_cpp.server", **peer(scratch, questions, clients, seconds)})
    first, alone, other = rows
    figures = {
        "failed_requests": float(first["failed"]),
        "p50_ms": first["p50 ms"],
        "p95_ms": first["p95 ms"],
        "requests_per_s": first["requests/s"],
        "vs_one_at_a_time": first["requests/s"] / alone["requests/s"],
    }
    if "CPU ms/request" in first:
        figures["cpu_vs_one_at_a_time"] = alone["CPU ms/request"] / first["CPU ms/request"]
    if other.get("requests/s"):
        figures["vs_llama_cpp_server"] = first["requests/s"] / other["requests/s"]
    return rows, figures


def ours(scratch: Path, questions: Sequence[str], slots: int, clients: int, seconds: float) -> dict[str, Any]:
    """Our server, with a version promoted and the index refreshed in the middle."""
    promote(str(scratch / "home" / "registry"), USE_CASE, "v1")
    port = free_port()
    arguments = ["-m", "pipelines.serve", "--folder", str(scratch / "use_cases"), "--port", str(port)]
    with Running([*arguments, "--slots", str(slots)], scratch, port, "/health") as server:
        done: dict[str, float] = {}
        used = server.cpu_seconds()

        def disturb() -> None:
            began = time.monotonic()
            time.sleep(seconds / 3)
            promote(str(scratch / "home" / "registry"), USE_CASE, "v2")
            time.sleep(max(0.0, began + 2 * seconds / 3 - time.monotonic()))
            change(scratch, DOCUMENTS // 10)
            started = time.monotonic()
            command = [sys.executable, "-m", "benchmarks.serve", "--refresh", str(scratch)]
            subprocess.run(command, cwd=REPOSITORY, env=environment(scratch), check=True, capture_output=True)
            done["refresh s"] = time.monotonic() - started

        disturbing = threading.Thread(target=disturb)
        disturbing.start()
        chats = [[{"role": "user", "content": question}] for question in questions]
        load = put_load(port, chats, clients, seconds, model=USE_CASE)
        disturbing.join()
        answered = " ".join(sorted(set(load.versions)))
        return {**shown(load), **per_request(used, server, load), "answered by": answered, **done}


def peer(scratch: Path, questions: Sequence[str], clients: int, seconds: float) -> dict[str, Any]:
    """llama-cpp-python's server with the same file."""
    port = free_port()
    model = scratch / "home" / "registry" / USE_CASE / "v1" / f"{USE_CASE}-Q8_0.gguf"
    arguments = ["-c", PEER, "--model", str(model), "--n_ctx", str(CONTEXT_TOKENS), "--port", str(port)]
    arguments += ["--n_threads", str(available_cores()), "--n_threads_batch", str(available_cores())]
    arguments += ["--interrupt_requests", "false"]  # by default a question cuts off the stream that is being written
    try:
        with Running(arguments, scratch, port, "/v1/models") as server:
            chats, used = prompts(scratch, questions), server.cpu_seconds()
            load = put_load(port, chats, clients, seconds, model="model")
            return {**shown(load), **per_request(used, server, load)}
    except RuntimeError as error:
        return {"note": str(error)[-120:]}


def prompts(scratch: Path, questions: Sequence[str]) -> list[list[dict[str, str]]]:
    """The chats that our server makes of ``questions``."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(scratch / "base-v1" / "tokenizer.json"))
    stores = stores_of(scratch)
    found = retrieved_texts(questions, **stores)
    stores["catalog"].dispose()
    chats = [
        build_messages(
            PROMPT, [Message("user", question)], texts, count_tokens=lambda text: len(tokenizer.encode(text).ids)
        )
        for question, texts in zip(questions, found, strict=True)
    ]
    return [[{"role": turn.role, "content": turn.content} for turn in chat] for chat in chats]


def per_request(before: float | None, server: Running, load: Load) -> dict[str, float]:
    """Processor time of the server, which other work on the machine distorts less than what clients see."""
    after = server.cpu_seconds()
    if before is None or after is None or not load.seconds:
        return {}
    return {"CPU ms/request": 1000 * (after - before) / len(load.seconds)}


def shown(load: Load) -> dict[str, Any]:
    if not load.seconds:
        return {"failed": len(load.failures), "note": str(load.failures[:1])}
    if load.failures:
        print(f"  failed: {load.failures[:3]}")
    twentieths = statistics.quantiles(load.seconds, n=20) if len(load.seconds) > 1 else load.seconds * 19
    return {
        "requests": len(load.seconds),
        "failed": len(load.failures),
        "requests/s": len(load.seconds) / load.elapsed,
        "p50 ms": 1000 * statistics.median(load.seconds),
        "p95 ms": 1000 * twentieths[-1],
        "first words p50 ms": 1000 * statistics.median(load.first) if load.first else None,
    }


def put_load(port: int, chats: Sequence[list[dict[str, str]]], clients: int, seconds: float, *, model: str) -> Load:
    """Each client asks again as soon as it has its answer; those that run at the end are waited for, and count."""
    load, began = Load(), time.monotonic()
    end = began + seconds

    def client(number: int) -> None:
        draw, turn = random.Random(number), number
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while time.monotonic() < end:
            turn += 1
            try:
                ask(connection, draw.choice(chats), model, load, stream=turn % 2 == 0)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                with load.lock:
                    load.failures.append(f"{type(error).__name__}: {error}")
                connection.close()
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.elapsed = time.monotonic() - began
    return load


def ask(
    connection: http.client.HTTPConnection, chat: list[dict[str, str]], model: str, load: Load, *, stream: bool
) -> None:
    """One question; a ValueError says what is wrong with the answer."""
    asked = {
        "model": model,
        "messages": chat,
        "stream": stream,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
    }
    began = time.monotonic()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
    answer = connection.getresponse()
    first = None
    if stream and answer.status == 200:
        pieces = []
        for line in answer:
            pieces.append(line)
            if first is None and b'"content"' in line and b'"content": ""' not in line:
                first = time.monotonic() - began
        text = b"".join(pieces)
        whole = b"[DONE]" in text and b'"finish_reason": "' in text
    else:
        text = answer.read()
        whole = answer.status == 200 and json.loads(text)["choices"][0]["finish_reason"] in ("stop", "length")
    if answer.status != 200 or not whole:
        raise ValueError(f"{answer.status} {text[-200:]!r}")
    with load.lock:
        load.seconds.append(time.monotonic() - began)
        load.versions.append(answer.headers.get("X-Freshet-Version", ""))
        if first is not None:
            load.first.append(first)


class Running:
    """A server process, until the block ends."""

    def __init__(self, arguments: Sequence[str], scratch: Path, port: int, path: str) -> None:
        self._log = scratch / f"server-{port}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], cwd=REPOSITORY, env=environment(scratch), stdout=log, stderr=log
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return
            except OSError:
                time.sleep(0.1)
            finally:
                connection.close()
        raise RuntimeError(f"did not start ({self._process.poll()}): {self._log.read_text(errors='replace')[-500:]}")

    def __enter__(self) -> Self:
        return self

    def cpu_seconds(self) -> float | None:
        """That the server's process has used; None where the system does not say."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


def environment(scratch: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "QDRANT_URL")}
    kept.setdefault("FRESHET_CACHE", str(REPOSITORY / ".freshet" / "cache"))
    return {**kept, "FRESHET_HOME": str(scratch / "home"), "FRESHET_SERVE_TOKEN": "", "MODEL_REGISTRY_URL": ""}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# --- what is served


def make_home(scratch: Path) -> list[str]:
    """Documents, their index and two versions in a registry; returns questions on the documents."""
    os.environ.update(environment(scratch))
    folder = scratch / "use_cases" / USE_CASE
    (folder / "docs").mkdir(parents=True)
    draw, questions = Draw(7), []
    for number in range(DOCUMENTS):
        [text], facts, _ = texts_and_facts(draw, texts=1, facts=4)
        (folder / "docs" / f"{number:04}.md").write_text(f"# {facts[0].subject}\n\n{text}\n", encoding="utf-8")
        questions += [fact.question for fact in facts]
    attributes = {
        "name": USE_CASE,
        "sources": [{"name": "docs", "type": "folder", "url": "docs"}],
        "retrieval": {"top_k": 3},
        "labels": {"feedback": True},
        "fine_tune": {"task": "generate", "base_model": "random/weights"},
    }
    written = yaml.safe_dump({"type": "pipelines.use_case.UseCase", "attributes": attributes})
    (folder / "defs.yaml").write_text(written, encoding="utf-8")
    refresh(scratch)
    make_versions(scratch)
    return random.Random(7).sample(questions, QUESTIONS)


def make_versions(scratch: Path) -> None:
    """``v1`` and ``v2``: the same shape, other random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(VOCABULARY, chats=1000)
    for number, version in enumerate(("v1", "v2")):
        base = scratch / f"base-{version}"
        torch.manual_seed(number)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=CONTEXT_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **SHAPE,
        )
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight[tokenizer.all_special_ids] = 0  # never the likeliest: each answer has all its tokens
        model.save_pretrained(base)
        save_tokenizer(tokenizer, base)
        folder = scratch / "home" / "registry" / USE_CASE / version
        (folder / "adapter").mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / "adapter" / name).write_bytes((base / name).read_bytes())
        (folder / "chat_template.jinja").write_bytes(str(tokenizer.chat_template).encode())
        convert(base, scratch / "F16.gguf", name=USE_CASE, metadata={})
        quantise(scratch / "F16.gguf", folder / f"{USE_CASE}-Q8_0.gguf", "Q8_0", None)
        facts = {
            "fingerprint": fingerprint(version),
            "kind": "published_model",
            "task": "generate",
            "use_case": USE_CASE,
            "version": version,
            "prompt": PROMPT.model_dump(mode="json"),
            "template_hash": text_hash(str(tokenizer.chat_template)),
            "stops": [],
            "maximum_answer_tokens": ANSWER_TOKENS,
            "context_length": CONTEXT_TOKENS,
            "quantisations": {"Q8_0": {"file": f"{USE_CASE}-Q8_0.gguf"}},
            "settings": {"release": {"serve": "Q8_0"}},
        }
        seal(folder, facts)


def change(scratch: Path, documents: int) -> None:
    """So many documents say something else."""
    stamp = time.monotonic_ns()
    for path in sorted((scratch / "use_cases" / USE_CASE / "docs").glob("*.md"))[:documents]:
        path.write_text(f"{path.read_text(encoding='utf-8')}\nRevision {stamp}.\n", encoding="utf-8")


def refresh(scratch: Path) -> None:
    """Bring the index up to the documents, as the job does."""
    declaration, stores = load_declaration(USE_CASE, scratch / "use_cases"), stores_of(scratch)
    base = scratch / "use_cases" / USE_CASE
    sync_source(declaration.sources[0], base=base, progress=lambda _line: None, **stores)
    serve_index(sources=["docs"], **stores)


def stores_of(scratch: Path) -> dict[str, Any]:
    """Arguments that a sync and a search share."""
    return {
        "use_case": USE_CASE,
        "retrieval": load_declaration(USE_CASE, scratch / "use_cases").retrieval,
        "catalog": open_catalog(f"sqlite:///{scratch / 'home' / 'catalog.db'}"),
        "index": EdgeIndex(scratch / "home" / "index"),
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
