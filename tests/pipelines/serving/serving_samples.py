"""A shop whose tiny chat model is published for real, with documents that it answers from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml

from pipelines.artifacts import Artifact, load, seal
from pipelines.catalog import open_catalog
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.serving import serve_index
from pipelines.corpus.sync import sync_source
from pipelines.declaration import Declaration, load_declaration
from pipelines.evaluation.gate import decide
from pipelines.evaluation.metrics import Difference
from pipelines.fingerprint import fingerprint
from pipelines.release.registry import PublishedVersion, publish
from tests.pipelines.chat_base import THINGS
from tests.pipelines.release.chat_samples import CHAT_EVALUATION, CHAT_PROMPT, CHAT_USE_CASE
from tests.pipelines.release.samples import copied, no_progress


class Shop:
    """A home with documents, an index, and a registry to publish to."""

    def __init__(self, folder: Path, gguf: Artifact, adapter: Artifact) -> None:
        self.folder, self.home, self.use_cases = folder, folder / "home", folder / "use_cases"
        self.documents = self.use_cases / CHAT_USE_CASE / "docs"
        self.documents.mkdir(parents=True)
        self._gguf, self._adapter, self._published = gguf, adapter, 0
        for thing, colour in THINGS.items():
            self.write(thing, colour)
        self.declare()

    def declare(self, **changes: Any) -> Declaration:
        """Write the use case's YAML."""
        attributes: dict[str, Any] = {
            "name": CHAT_USE_CASE,
            "sources": [{"name": "docs", "type": "folder", "url": "docs"}],
            "retrieval": {"top_k": 2},
            "labels": {"feedback": True},
            "fine_tune": {"task": "generate", "base_model": "some/base"},
            "prompt": CHAT_PROMPT.model_dump(mode="json"),
            "release": {"serve": "Q8_0"},
            **changes,
        }
        text = yaml.safe_dump({"type": "pipelines.use_case.UseCase", "attributes": attributes})
        (self.use_cases / CHAT_USE_CASE / "defs.yaml").write_text(text, encoding="utf-8")
        return load_declaration(CHAT_USE_CASE, self.use_cases)

    def write(self, thing: str, colour: str) -> None:
        """One document."""
        (self.documents / f"{thing}.md").write_text(f"# {thing}\n\nThe {thing} is {colour} .\n", encoding="utf-8")

    @property
    def registry_url(self) -> str:
        return str(self.home / "registry")

    def catalog(self) -> sa.Engine:
        return open_catalog(f"sqlite:///{self.home / 'catalog.db'}")

    def refresh(self) -> None:
        """Bring the index up to the documents."""
        declaration = load_declaration(CHAT_USE_CASE, self.use_cases)
        catalog = self.catalog()
        stores: dict[str, Any] = {
            "use_case": CHAT_USE_CASE,
            "retrieval": declaration.retrieval,
            "catalog": catalog,
            "index": EdgeIndex(self.home / "index"),
        }
        try:
            base = self.use_cases / CHAT_USE_CASE
            sync_source(declaration.sources[0], base=base, progress=no_progress, **stores)
            serve_index(sources=["docs"], **stores)
        finally:
            catalog.dispose()

    def publish(self) -> PublishedVersion:
        """Another version of the same model, made champion."""
        self._published += 1
        number = self._published
        gguf = copied(self._gguf, self.folder / f"gguf-{number}", fingerprint=f"{number:064x}")
        report = write_chat_report(
            self.folder / f"report-{number}", self._adapter, self._adapter.fingerprint if number > 1 else None
        )
        return publish(gguf, self._adapter, report, use_case=CHAT_USE_CASE, registry_url=self.registry_url)


def write_chat_report(folder: Path, adapter: Artifact, champion: str | None) -> Artifact:
    """A passed verdict on ``adapter``, with the gate's real decision on the scores given."""
    beaten = None if champion is None else 0.8
    verdict = decide(
        rows=60,
        candidate=0.9,
        base=0.2,
        champion=beaten,
        difference=Difference(0.1, 0.05, 0.15),
        settings=CHAT_EVALUATION.gate,
        task="generate",
        has_champion=champion is not None,
        further={"stopped": 1.0},
    )
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"verdict": asdict(verdict)}), encoding="utf-8")
    facts: Mapping[str, Any] = {
        "kind": "evaluation_report",
        "use_case": CHAT_USE_CASE,
        "adapter": adapter.fingerprint,
        "adapter_files": adapter.manifest["files"],
        **{name: adapter.manifest[name] for name in ("task", "prompt", "template_hash")},
        "training_set": adapter.manifest["training_set"],
        "champion": champion,
        "settings": CHAT_EVALUATION.model_dump(mode="json"),
        "verdict": {"passed": verdict.passed, "reasons": list(verdict.reasons)},
    }
    seal(folder, {"fingerprint": fingerprint(facts), **facts})
    return load(folder)
