from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.embedding import Embedder
from pipelines.corpus.search import search
from pipelines.corpus.settings import RetrievalSettings
from pipelines.environment import REPOSITORY
from pipelines.errors import ConfigError, NotBuiltError
from tests.pipelines.corpus.conftest import Corpus
from tests.pipelines.corpus.hash_embedder import HashEmbedder


@pytest.fixture
def served(corpus: Corpus) -> Corpus:
    corpus.write("pump.md", "# Pump\n\nThe pump lifts water.\n")
    corpus.write("tank.md", "# Tank\n\nThe tank holds water.\n")
    corpus.sync()
    corpus.serve()
    return corpus


def test_a_hit_says_where_and_when_its_text_comes_from(served: Corpus) -> None:
    """I15, I22"""
    hits = served.search("what does the tank hold", 2)
    assert [hit.document_id for hit in hits] == ["tank.md", "pump.md"]
    hit = hits[0]
    assert hit.text == "Tank\n\nThe tank holds water."
    assert (hit.title, hit.source) == ("Tank", "docs")
    assert hit.uri == (served.folder / "tank.md").as_uri()
    assert 0 < hits[1].score < hit.score <= 1.001
    assert hit.updated_at is not None
    assert hit.version
    assert datetime.now(UTC) - hit.indexed_at < timedelta(minutes=1)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(served: Corpus, question: str) -> None:
    with pytest.raises(ConfigError, match="is empty: ask something"):
        served.search(question)


@pytest.mark.parametrize("top_k", [0, -1, 101])
def test_a_number_of_hits_out_of_range_is_refused(served: Corpus, top_k: int) -> None:
    with pytest.raises(ConfigError, match=rf"top_k {top_k} is out of range: 1 to 100"):
        served.search("tank", top_k)


def test_without_a_number_the_settings_decide(served: Corpus) -> None:
    settings = RetrievalSettings(chunk_tokens=64, top_k=1)
    assert len(served.search("water", None, retrieval=settings)) == 1  # type: ignore[arg-type]


def test_before_anything_is_served_there_is_a_clear_message(corpus: Corpus) -> None:
    corpus.write("a.md", "# A\n\ntext\n")
    corpus.sync()
    with pytest.raises(NotBuiltError, match="run the job test_refresh first"):
        corpus.search("text")


def test_a_question_in_another_embedders_vectors_is_refused(served: Corpus) -> None:
    """I12"""
    with pytest.raises(ConfigError, match=r"was built with hash 1, and hash 2 is configured"):
        served.search("tank", embedder=HashEmbedder("2"))
    assert len(served.search("tank")) == 2


def test_another_chunk_size_does_not_keep_the_served_index_from_answering(served: Corpus) -> None:
    assert len(served.search("tank", retrieval=RetrievalSettings(chunk_tokens=100))) == 2


def test_with_the_real_embedder_an_answer_is_found_and_an_unchanged_refresh_never_loads_it(
    make_corpus: Callable[..., Corpus], edge: EdgeIndex, minilm: Embedder, freshet_home: Path
) -> None:
    corpus: Corpus = replace(make_corpus(edge, minilm), retrieval=RetrievalSettings())
    corpus.write("refunds.md", "# Refunds\n\nMoney is returned to the card within ten working days.\n")
    corpus.write("shipping.md", "# Shipping\n\nParcels leave the warehouse on the next morning.\n")
    corpus.write("warranty.md", "# Warranty\n\nFaulty parts are replaced free of charge for two years.\n")
    corpus.sync()
    corpus.serve()
    stores = {"catalog": corpus.catalog, "index": edge}
    questions = {"When do I get my cash back?": "refunds.md", "My machine broke, who pays?": "warranty.md"}
    for question, document in questions.items():
        hits = search(question, use_case="test", retrieval=RetrievalSettings(), **stores)
        assert hits[0].document_id == document
    code = f"""
import sys
from pathlib import Path
from pipelines.catalog import open_catalog
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.settings import FolderSource, RetrievalSettings
from pipelines.corpus.serving import serve_index
from pipelines.corpus.sync import sync_source
stores = dict(use_case="test", retrieval=RetrievalSettings(),
              catalog=open_catalog("sqlite:///{freshet_home / "catalog.db"}"), index=EdgeIndex(Path("{edge._folder}")))
source = FolderSource(name="docs", type="folder", url="{corpus.folder}")
report = sync_source(source, base=Path("/"), **stores)
serve_index(sources=["docs"], **stores)
print(report.unchanged, sorted({{"torch", "transformers", "sentence_transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3 []"
