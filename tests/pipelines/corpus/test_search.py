from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.catalog import collections, served_collections
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.embedding import Embedder
from pipelines.corpus.search import Found, Place, relevant, retrieved_texts, search, search_collection
from pipelines.corpus.server import ServerIndex
from pipelines.corpus.settings import AccessSettings, RetrievalSettings
from pipelines.environment import REPOSITORY
from pipelines.errors import ConfigError, NotBuiltError
from pipelines.models import BUNDLED, model_folder
from tests.conftest import shared_data
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
    assert (hit.title, hit.source, hit.ordinal) == ("Tank", "docs", 0)
    assert hit.uri == (served.folder / "tank.md").as_uri()
    assert hits[1].score < hit.score
    assert hit.places["dense"].rank == hit.places["words"].rank == 1
    assert 0 < hit.places["dense"].score <= 1.001
    assert hit.version
    assert hit.updated_at is not None
    assert hit.age_seconds is not None
    assert 0 <= hit.age_seconds < 60
    assert datetime.now(UTC) - hit.updated_at - timedelta(seconds=hit.age_seconds) < timedelta(seconds=10)
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


# ---------------------------------------------------------------- modes


def mode(name: str, **settings: Any) -> RetrievalSettings:
    return RetrievalSettings(chunk_tokens=64, mode=name, **settings)


def test_words_find_what_stems_alike_and_nothing_else(served: Corpus) -> None:
    hits = served.search("lifting", retrieval=mode("words"))
    assert [hit.document_id for hit in hits] == ["pump.md"]
    assert list(hits[0].places) == ["words"]
    assert served.search("the", retrieval=mode("words")) == []


def test_words_alone_need_no_embedder(served: Corpus) -> None:
    assert isinstance(served.embedder, HashEmbedder)
    before = list(served.embedder.encoded)
    assert served.search("pump", retrieval=mode("words"), embedder=HashEmbedder("2"))
    assert served.embedder.encoded == before


def test_meaning_alone_scores_by_cosine(served: Corpus) -> None:
    hits = served.search("tank", retrieval=mode("dense"))
    assert [hit.document_id for hit in hits] == ["tank.md", "pump.md"]
    assert hits[0].score == hits[0].places["dense"].score <= 1.001
    assert list(hits[0].places) == ["dense"]


def test_hybrid_search_finds_what_either_finds(served: Corpus) -> None:
    for fusion in ("dbsf", "rrf"):
        hits = served.search("lifting", retrieval=mode("hybrid", fusion=fusion))
        assert hits[0].document_id == "pump.md"
        assert set(hits[0].places) == {"dense", "words"}
        assert set(hits[1].places) == {"dense"}


def test_words_of_the_path_count(served: Corpus) -> None:
    served.write("valves/non-return.md", "# Type 4\n\nIt lets water pass one way.\n")
    served.sync()
    hits = served.search("non return valves", retrieval=mode("words"))
    assert hits[0].document_id == "valves/non-return.md"


def test_an_unknown_language_is_refused_before_a_collection_is_made(corpus: Corpus) -> None:
    corpus.retrieval = RetrievalSettings(chunk_tokens=64, language="klingon")
    corpus.write("a.md", "# A\n\ntext\n")
    with pytest.raises(ConfigError, match=r"language 'klingon' is not known: use none, .*english"):
        corpus.sync()
    assert corpus.index.names() == []


def test_in_another_language_its_own_words_are_stemmed(corpus: Corpus) -> None:
    corpus.retrieval = RetrievalSettings(chunk_tokens=64, language="german", mode="words")
    corpus.write("a.md", "# Anlage\n\nDie Pumpen laufen immer.\n")
    corpus.write("b.md", "# Behälter\n\nDer Tank ist leer.\n")
    corpus.sync()
    corpus.serve()
    assert [hit.document_id for hit in corpus.search("Pumpe")] == ["a.md"]


def test_words_are_found_where_nothing_separates_them(edge_corpus: Corpus) -> None:
    edge_corpus.retrieval = RetrievalSettings(chunk_tokens=64, language="chinese", mode="words")
    edge_corpus.write("a.md", "# 一\n\n水泵每分钟可以抽水五十升。\n")
    edge_corpus.write("b.md", "# 二\n\n水箱容量为两百升。\n")
    edge_corpus.sync()
    edge_corpus.serve()
    assert [hit.document_id for hit in edge_corpus.search("容量")] == ["b.md"]


# ---------------------------------------------------------------- filters and access


DECLARED = {"product": "keyword", "year": "integer", "price": "float", "active": "boolean", "released": "datetime"}
FACTS = {
    "a": "product: pump\nyear: 2023\nprice: 1.5\nactive: true\nreleased: 2023-04-01\naccess: [staff]",
    "b": 'product: [pump, spare]\nyear: 2024\nprice: 2\nactive: false\nreleased: 2024-04-01T08:30+02:00\naccess: "*"',
    "c": "product: tank\nyear: 2025\nprice: 20\nactive: yes\nreleased: 2025-04-01\naccess: ann, bob",
    "d": "product: tank",
}


@pytest.fixture
def described(corpus: Corpus) -> Corpus:
    return describe(corpus)


@pytest.fixture
def edge_described(edge_corpus: Corpus) -> Corpus:
    return describe(edge_corpus)


def describe(corpus: Corpus) -> Corpus:
    corpus.retrieval = RetrievalSettings(chunk_tokens=64, metadata=DECLARED)
    for name, facts in FACTS.items():
        corpus.write(f"{name}.md", f"---\n{facts}\n---\n# Water\n\nText {name} on water.\n")
    corpus.sync()
    corpus.serve()
    return corpus


def found(corpus: Corpus, **options: Any) -> str:
    return "".join(sorted({hit.document_id[0] for hit in corpus.search("water", 50, **options)}))


FILTERED: list[tuple[dict[str, Any], str]] = [
    ({}, "abcd"),
    ({"product": "pump"}, "ab"),
    ({"product": ["spare", "tank"]}, "bcd"),
    ({"product": "pump", "active": True}, "a"),
    ({"active": "false"}, "b"),
    ({"active": [True, False]}, "abc"),
    ({"year": 2024}, "b"),
    ({"year": ["2023", 2025]}, "ac"),
    ({"year": {"gte": 2024}}, "bc"),
    ({"year": {"gt": 2023, "lt": "2025"}}, "b"),
    ({"price": 2}, "b"),
    ({"price": [1.5, 20.0]}, "ac"),
    ({"price": {"lte": 2}}, "ab"),
    ({"released": "2024-04-01"}, "b"),
    ({"released": "2024-04-01T06:30:00Z"}, "b"),
    ({"released": {"gte": "2024-04-01", "lte": "2025-04-01"}}, "bc"),
    ({"released": {"gt": "2024-04-01"}}, "c"),
    ({"released": {"lt": datetime(2024, 4, 1, tzinfo=UTC)}}, "a"),
    ({"document_id": ["a.md", "d.md"]}, "ad"),
    ({"source": "elsewhere"}, ""),
]


def test_filters_hold_on_both_rankings(described: Corpus) -> None:
    for filters, documents in FILTERED:
        for name in ("dense", "words"):
            settings = described.retrieval.model_copy(update={"mode": name})
            assert (filters, found(described, filters=filters, retrieval=settings)) == (filters, documents)


def test_a_hit_tells_the_declared_facts(described: Corpus) -> None:
    hit = described.search("water", filters={"document_id": "b.md"})[0]
    assert hit.metadata == {
        "product": ["pump", "spare"],
        "year": 2024,
        "price": 2.0,
        "active": False,
        "released": "2024-04-01T08:30:00+02:00",
    }


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (
            {"colour": "red"},
            r"filter 'colour' is no field .* active, document_id, price, product, released, source, year",
        ),
        ({"year": "many"}, r"filter 'year' is 'many', which is not a whole number"),
        ({"year": True}, r"not a whole number"),
        ({"price": "nan"}, r"not a number"),
        ({"product": 7}, r"filter 'product' is 7, which is not text"),
        ({"active": "perhaps"}, r"not true or false"),
        ({"released": "soon"}, r"not a date or date-time"),
        ({"product": {"gte": "p"}}, r"filter 'product' \(keyword\) is .*: give a value or a list of them"),
        ({"year": {"from": 3}}, r"give bounds gte, gt, lte, lt"),
        ({"year": {}}, r"give bounds"),
        ({"product": []}, r"empty list"),
    ],
)
def test_a_filter_that_cannot_be_names_what_can(edge_corpus: Corpus, filters: dict[str, Any], said: str) -> None:
    edge_corpus.retrieval = RetrievalSettings(metadata=DECLARED)
    with pytest.raises(ConfigError, match=said):
        edge_corpus.search("water", filters=filters)


def test_a_field_declared_after_the_index_was_built_needs_a_refresh(edge_corpus: Corpus) -> None:
    edge_corpus.write("a.md", "# A\n\nwater\n")
    edge_corpus.sync()
    edge_corpus.serve()
    declared = RetrievalSettings(chunk_tokens=64, metadata={"product": "keyword"})
    with pytest.raises(ConfigError, match=r"built before metadata.product was declared: run the job test_refresh"):
        edge_corpus.search("water", filters={"product": "pump"}, retrieval=declared)


def access(described: Corpus, mode: str) -> dict[str, Any]:
    return {"retrieval": described.retrieval.model_copy(update={"access": AccessSettings(mode=mode)})}


def test_enforced_access_shows_each_only_what_names_them(described: Corpus) -> None:
    """I21"""
    enforced = access(described, "enforce")
    assert found(described, principals=["staff"], **enforced) == "ab"
    assert found(described, principals=["bob"], **enforced) == "bc"
    assert found(described, principals=["staff", "ann"], **enforced) == "abc"
    assert found(described, principals=["nobody known"], **enforced) == "b"
    assert found(described, principals=["staff"], filters={"product": "tank"}, **enforced) == ""


def test_enforced_access_shows_nothing_to_nobody(described: Corpus) -> None:
    """I21"""
    for principals in (None, [], [""], "  "):
        assert found(described, principals=principals, **access(described, "enforce")) == ""


def test_a_document_without_rules_is_unreadable_where_they_are_enforced(edge_corpus: Corpus) -> None:
    """I21"""
    for name, rules in (("a", "[]"), ("b", "''"), ("c", "staff"), ("e", "null")):
        edge_corpus.write(f"{name}.md", f"---\naccess: {rules}\n---\n# Water\n\nText {name}.\n")
    edge_corpus.write("d.md", "# Water\n\nText d.\n")
    edge_corpus.sync()
    edge_corpus.serve()
    for principals in (["staff"], ["*", "staff"], ["ann", "bob", "staff"]):
        assert found(edge_corpus, principals=principals, **access(edge_corpus, "enforce")) == "c"


def test_access_that_only_warns_hides_nothing_and_says_what_it_would(described: Corpus) -> None:
    for principals, hidden in ((["staff"], "cd"), (["bob"], "ad"), (None, "abcd")):
        hits = described.search("water", 50, principals=principals, **access(described, "warn"))
        assert {hit.document_id[0] for hit in hits} == set("abcd")
        assert {hit.document_id[0] for hit in hits if hit.would_be_hidden} == set(hidden)
    assert not any(hit.would_be_hidden for hit in described.search("water"))


# ---------------------------------------------------------------- neighbours


def test_neighbours_are_the_chunks_around_a_hit_in_the_same_document(corpus: Corpus) -> None:
    corpus.write("a.md", "# A\n\n" + "\n".join(f"## Part {n}\n\nText of part{n}.\n" for n in range(6)))
    corpus.write("b.md", "# B\n\nOther.\n")
    corpus.sync()
    corpus.serve()
    hit = corpus.search("part3", 1, neighbours=2)[0]
    assert "Text of part3." in hit.text
    assert ["part1" in hit.before[0], "part2" in hit.before[1], len(hit.before)] == [True, True, 2]
    assert ["part4" in hit.after[0], "part5" in hit.after[1], len(hit.after)] == [True, True, 2]
    first = corpus.search("part0", 1, neighbours=1)[0]
    assert "part1" in first.after[0]
    assert corpus.search("other", 1, neighbours=3)[0].before == ()
    assert corpus.search("part3", 1)[0].before == ()
    with pytest.raises(ConfigError, match="neighbours 21 is out of range: 0 to 20"):
        corpus.search("part3", neighbours=21)


# ---------------------------------------------------------------- a collection made before


def test_a_collection_without_sparse_vectors_answers_by_meaning_until_it_is_rebuilt(edge_corpus: Corpus) -> None:
    import qdrant_edge as qe

    corpus = edge_corpus
    assert isinstance(corpus.index, EdgeIndex)
    path = corpus.index._folder / "test__old"
    path.mkdir(parents=True)
    shard = qe.EdgeShard.create(
        str(path), qe.EdgeConfig(vectors={"dense": qe.EdgeVectorParams(size=64, distance=qe.Distance.Cosine)})
    )
    payload = {"text": "The tank holds water.", "title": "Tank", "uri": "file:///tank.md", "source": "docs"}
    payload |= {"document_id": "tank.md", "version": "1", "content_hash": "h", "updated_at": None}
    payload |= {"indexed_at": datetime.now(UTC).isoformat()}
    vector = corpus.embedder.encode([payload["text"]])[0].tolist()
    shard.update(
        qe.UpdateOperation.upsert_points([qe.Point("00000000-0000-0000-0000-000000000001", {"dense": vector}, payload)])
    )
    shard.close()
    now = datetime.now(UTC)
    with corpus.catalog.begin() as connection:
        pipeline = {"embedder": dict(corpus.embedder.identity), "payload": 1}
        row = {"collection": "test__old", "use_case": "test", "pipeline": pipeline, "created_at": now}
        connection.execute(sa.insert(collections).values(**row))
        row = {"use_case": "test", "collection": "test__old", "served_at": now}
        connection.execute(sa.insert(served_collections).values(**row))
    for name in ("hybrid", "words", "dense"):
        hits = corpus.search("tank", retrieval=mode(name), neighbours=1)
        assert [(hit.document_id, list(hit.places), hit.age_seconds) for hit in hits] == [("tank.md", ["dense"], None)]
    enforced = mode("hybrid", access=AccessSettings(mode="enforce"))
    assert corpus.search("tank", retrieval=enforced, principals=["staff"]) == []
    assert corpus.search("tank", filters={"document_id": "tank.md"})
    with pytest.raises(ConfigError, match=r"built before metadata.year was declared"):
        corpus.search("tank", retrieval=mode("hybrid", metadata={"year": "integer"}), filters={"year": 1})


# ---------------------------------------------------------------- both engines


def test_both_engines_give_the_same_answers_on_real_text(
    make_corpus: Callable[..., Corpus], edge: EdgeIndex, catalog: sa.Engine, tmp_path: Path
) -> None:
    from qdrant_client import QdrantClient

    from pipelines.catalog import open_catalog

    pages = sorted((shared_data("handbook-18f") / "v1").rglob("*.md"))[:20]
    one = replace(make_corpus(edge, HashEmbedder()), retrieval=RetrievalSettings())
    for page in pages:
        one.write(page.name, page.read_bytes())
    client = QdrantClient(":memory:")
    two = replace(one, index=ServerIndex(client), catalog=open_catalog(f"sqlite:///{tmp_path / 'other.db'}"))
    for corpus in (one, two):
        corpus.sync()
        corpus.serve()
    questions = ["how do I book a flight", "parental leave", "slack channels", "design research", "time sheets tock"]
    for question in questions:
        for name in ("hybrid", "words", "dense"):
            for fusion in ("dbsf", "rrf"):
                settings = RetrievalSettings(mode=name, fusion=fusion)
                options: dict[str, Any] = {"retrieval": settings, "neighbours": 1}
                ours, theirs = (corpus.search(question, 20, **options) for corpus in (one, two))
                assert len(ours) == 20 or name == "words"
                assert ours
                assert [(hit.text, hit.before, hit.after) for hit in ours] == [
                    (hit.text, hit.before, hit.after) for hit in theirs
                ]
                for mine, other in zip(ours, theirs, strict=True):
                    assert mine.score == pytest.approx(other.score, abs=1e-4)
    two.catalog.dispose()
    client.close()


# ---------------------------------------------------------------- reranking


def make_cross_encoder(folder: Path, outputs: int) -> Path:
    """Random and tiny, but a real one."""
    import shutil

    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(**sizes, num_labels=outputs, initializer_range=0.5)
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        source = model_folder(BUNDLED, None) / name
        if source.exists():
            shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("cross_encoder"), 1)


def test_a_reranker_with_several_outputs_is_refused(edge_described: Corpus, tmp_path: Path) -> None:
    settings = edge_described.retrieval.model_copy(update={"reranker": str(make_cross_encoder(tmp_path, 2))})
    with pytest.raises(ConfigError, match="has 2 outputs: choose a cross-encoder with one score"):
        edge_described.search("water", retrieval=settings)


def test_a_reranker_decides_the_order_of_the_best(edge_described: Corpus, cross_encoder: Path) -> None:
    from pipelines.corpus.rerank import open_reranker

    settings = edge_described.retrieval.model_copy(update={"reranker": str(cross_encoder)})
    hits = edge_described.search("which water", 8, retrieval=settings)
    scores = open_reranker(str(cross_encoder), None).scores("which water", [hit.text for hit in hits])
    assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 8
    assert {hit.places["fused"].rank for hit in hits} == set(range(1, 9))
    best = edge_described.search("which water", 1, retrieval=settings)
    assert best[0].document_id == hits[0].document_id


def test_a_reranker_that_is_not_pinned_or_has_no_safetensors_is_refused(edge_described: Corpus, tmp_path: Path) -> None:
    for model, said in (("owner/name", "pin its revision"), (str(tmp_path), "no \\*.safetensors"), ("x", "neither")):
        with pytest.raises(ConfigError, match=said):
            edge_described.search("water", retrieval=edge_described.retrieval.model_copy(update={"reranker": model}))


# ---------------------------------------------------------------- many questions at once


def test_many_questions_at_once_are_answered_as_one_by_one(edge_described: Corpus) -> None:
    questions = ["text a", "text b", "pump", "no such word"]
    with edge_described.index.open(edge_described.serve().collection) as points:
        many = search_collection(
            points, edge_described.embedder, questions, retrieval=edge_described.retrieval, top_k=3
        )
    for question, answer in zip(questions, many, strict=True):
        hits = edge_described.search(question, 3)
        assert [(each.payload["document_id"], each.score) for each in answer] == [
            (hit.document_id, hit.score) for hit in hits
        ]


def scored(text: str, cosine: float | None) -> Found:
    places = {"words": Place(1, 3.0)} | ({} if cosine is None else {"dense": Place(1, cosine)})
    return Found("1", 1.0, {"text": text}, places)


def test_the_closest_chunk_decides_whether_anything_is_relevant() -> None:
    ours = RetrievalSettings()
    near, far, unranked = (
        scored("The pump P-40 weighs 3 kg.", 0.3),
        scored("The P-40 is red.", 0.29),
        scored("Tank", None),
    )
    assert relevant("How heavy is it?", [far, near], ours) == [far, near], "all or nothing"
    assert relevant("How heavy is it?", [far, unranked], ours) == ()
    assert relevant("How heavy is it?", [], ours) == ()
    assert relevant("Tell me of the p-40", [unranked, far], ours) == [unranked, far], "a part number is a part number"
    assert relevant("Tell me of the P-4", [unranked, far], ours) == ()
    assert relevant("How heavy is it?", [far], ours.model_copy(update={"minimum_similarity": 0.2})) == [far]
    assert relevant("How heavy is it?", [far], ours.model_copy(update={"mode": "words"})) == [far]
    other = ours.model_copy(update={"embedder": "some/other"})
    assert relevant("How heavy is it?", [far], other) == [far], "of others nothing is known"
    assert relevant("How heavy is it?", [far], other.model_copy(update={"minimum_similarity": 0.3})) == ()


def test_prompts_get_no_text_for_questions_that_have_nothing_to_do_with_the_documents(
    make_corpus: Callable[..., Corpus], edge: EdgeIndex, minilm: Embedder
) -> None:
    corpus: Corpus = replace(make_corpus(edge, minilm), retrieval=RetrievalSettings())
    corpus.write("refunds.md", "# Refunds\n\nMoney is returned to the card within ten working days.\n")
    corpus.write("warranty.md", "# Warranty\n\nFaulty parts are replaced free of charge for two years.\n")
    corpus.sync()
    corpus.serve()
    [ours, theirs] = retrieved_texts(
        ["When do I get my cash back?", "Who painted the ceiling of the chapel?"],
        use_case="test",
        retrieval=RetrievalSettings(),
        catalog=corpus.catalog,
        index=edge,
    )
    assert "ten working days" in ours[0]
    assert theirs == ()


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
from pipelines.corpus.serving import serve_index
from pipelines.corpus.settings import FolderSource, RetrievalSettings
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
