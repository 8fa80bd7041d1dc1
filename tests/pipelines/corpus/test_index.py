"""The same operations on every index."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from math import log
from pathlib import Path

import numpy as np
import pytest

from pipelines.corpus.bm25 import bm25, weighted_text
from pipelines.corpus.edge import EdgeIndex, _config
from pipelines.corpus.embedding import Vectors
from pipelines.corpus.index import DENSE, Condition, Point, Query, Schema, StoredPoint, VectorIndex, open_index
from pipelines.corpus.server import ServerIndex
from pipelines.environment import REPOSITORY, Environment
from pipelines.errors import ArtifactError, ConfigError, LockedError, NotBuiltError, TransientError

NAME = "test__index"
SCHEMA = Schema(4, {"product": "keyword"})


def point(number: int, document: str = "d", source: str = "s") -> Point:
    vector = np.zeros(4, np.float32)
    vector[number % 4] = 1
    vector[3] += 0.1 * number
    payload = {"source": source, "document_id": document, "content_hash": "h", "text": f"t{number}", "at": None}
    return Point(str(uuid.UUID(int=number)), vector / np.linalg.norm(vector), payload)


@pytest.fixture
def filled(index: VectorIndex) -> VectorIndex:
    index.create(NAME, SCHEMA)
    with index.open(NAME) as points:
        points.upsert([point(1), point(2), point(3, "e"), point(4, "d", "other")])
        points.flush()
    return index


def ids(index: VectorIndex) -> list[int]:
    with index.open(NAME) as points:
        return sorted(uuid.UUID(each.point_id).int for each in points.scan())


def test_points_are_stored_with_vector_and_payload(filled: VectorIndex) -> None:
    with filled.open(NAME) as points:
        vectors = points.vectors([point(1).point_id, str(uuid.UUID(int=99))])
        stored = sorted(points.scan(with_text=True), key=lambda each: each.point_id)
        assert (points.count(), points.count("s")) == (4, 3)
    assert list(vectors) == [point(1).point_id]
    np.testing.assert_allclose(vectors[point(1).point_id], point(1).vector, atol=1e-6)
    assert vectors[point(1).point_id].dtype == np.float32
    assert stored[2] == StoredPoint(point(3).point_id, "s", "e", "h", text="t3")


def test_an_upsert_replaces_the_point_of_the_same_id(filled: VectorIndex) -> None:
    with filled.open(NAME) as points:
        points.upsert([point(1, "new")])
        assert points.count() == 4
        assert {each.document_id for each in points.scan("s")} == {"new", "d", "e"}


def test_a_deletion_by_document_spares_other_documents_other_sources_and_what_is_kept(filled: VectorIndex) -> None:
    with filled.open(NAME) as points:
        assert points.delete("s", ["d"], keep=[point(2).point_id]) == 1
    assert ids(filled) == [2, 3, 4]
    with filled.open(NAME) as points:
        assert points.delete("s", ["d", "e", "unknown"]) == 2
    assert ids(filled) == [4]


def test_a_payload_field_is_changed_on_one_document_only(filled: VectorIndex) -> None:
    with filled.open(NAME) as points:
        points.set_payload("s", "d", {"content_hash": "new"})
        changed = sorted(each.point_id for each in points.scan() if each.content_hash == "new")
        assert {each.text for each in points.scan(with_text=True)} == {"t1", "t2", "t3", "t4"}
    assert changed == [point(1).point_id, point(2).point_id]


def test_the_nearest_points_come_first(filled: VectorIndex) -> None:
    with filled.open(NAME) as points:
        found = points.candidates([Query(point(2).vector)], 2)[0].dense
    assert found[0].point_id == point(2).point_id
    assert found[0].score == pytest.approx(1, abs=1e-5)
    assert len(found) == 2


def test_more_points_than_a_page_are_all_there(index: VectorIndex) -> None:
    """I16"""
    index.create(NAME, SCHEMA)
    with index.open(NAME) as points:
        points.upsert([point(number, str(number)) for number in range(2500)])
        assert points.count() == 2500
        assert len({each.point_id for each in points.scan()}) == 2500
        assert len(points.vectors([point(number).point_id for number in range(2500)])) == 2500
        assert points.delete("s", [str(number) for number in range(2500)], keep=[point(7).point_id]) == 2499


def test_a_collection_is_never_created_over(filled: VectorIndex) -> None:
    """I13"""
    with pytest.raises(ConfigError, match="never created over"):
        filled.create(NAME, SCHEMA)
    assert ids(filled) == [1, 2, 3, 4]


def test_a_collection_that_is_not_there_is_not_built_yet(index: VectorIndex) -> None:
    assert not index.exists("test__none")
    with pytest.raises(NotBuiltError, match="test__none"), index.open("test__none"):
        pass


def test_a_collection_tells_what_it_was_made_for(index: VectorIndex) -> None:
    schema = Schema(4, {"product": "keyword", "when": "datetime"}, "german")
    index.create(NAME, schema)
    with index.open(NAME) as points:
        assert points.schema == schema
        assert points.schema.indexed["metadata.when"] == "datetime"


def test_collections_are_listed_and_dropped_by_name(filled: VectorIndex) -> None:
    filled.create("test__other", SCHEMA)
    assert filled.names() == ["test__index", "test__other"]
    filled.drop("test__other")
    filled.drop("test__other")
    assert filled.names() == [NAME]
    assert not filled.exists("test__other")
    filled.create("test__other", SCHEMA)
    with filled.open("test__other") as points:
        assert points.count() == 0
    assert ids(filled) == [1, 2, 3, 4]


def test_a_collection_in_use_is_not_dropped(edge: EdgeIndex) -> None:
    edge.create(NAME, SCHEMA)
    other = EdgeIndex(edge._folder, lock_seconds=0.1)
    with edge.open(NAME), pytest.raises(LockedError):
        other.drop(NAME)
    assert edge.names() == [NAME]


def test_points_are_fetched_by_id(filled: VectorIndex) -> None:
    wanted = [point(number).point_id for number in (3, 1, 99)]
    with filled.open(NAME) as points:
        assert points.fetch(wanted) == {
            point(1).point_id: StoredPoint(point(1).point_id, "s", "d", "h"),
            point(3).point_id: StoredPoint(point(3).point_id, "s", "e", "h"),
        }
        assert points.fetch(wanted, with_text=True)[point(3).point_id].text == "t3"
        assert points.payloads(wanted)[point(3).point_id] == point(3, "e").payload
        assert points.fetch([]) == points.payloads([]) == {}


def test_a_changed_payload_field_is_replaced_wholly_and_the_words_stay(index: VectorIndex) -> None:
    index.create(NAME, SCHEMA)
    payload = {**point(1).payload, "text": "pumps", "metadata": {"product": "pump", "old": 1}, "access": ["a", "b"]}
    with index.open(NAME) as points:
        points.upsert([Point(point(1).point_id, point(1).vector, payload)])
        points.set_payload("s", "d", {"metadata": {"product": ["tank"]}, "access": ["c"]})
        stored = points.payloads([point(1).point_id])[point(1).point_id]
        assert (stored["metadata"], stored["access"]) == ({"product": ["tank"]}, ["c"])
        found = [
            points.candidates([Query(text="pump")], 5, [Condition(*which)])[0].words
            for which in (
                ("metadata.product", ("tank",)),
                ("metadata.product", ("pump",)),
                ("access", ("c",)),
                ("access", ("a",)),
            )
        ]
    assert [len(each) for each in found] == [1, 0, 1, 0]


def test_passages_are_the_texts_of_one_document_by_ordinal(index: VectorIndex) -> None:
    index.create(NAME, SCHEMA)
    with index.open(NAME) as points:
        for number in range(8):
            each = point(number, "d" if number < 6 else "e")
            points.upsert([Point(each.point_id, each.vector, {**each.payload, "ordinal": number % 6})])
        assert points.passages("s", "d", 2, 4) == {2: "t2", 3: "t3", 4: "t4"}
        assert points.passages("s", "e", -3, 0) == {0: "t6"}
        assert points.passages("other", "d", 0, 5) == {}


def test_rare_words_weigh_more_in_both_engines_alike(index: VectorIndex) -> None:
    index.create(NAME, SCHEMA)
    texts = ["common pump", "common tank", "common valve", "common common common"]
    with index.open(NAME) as points:
        for number, text in enumerate(texts):
            points.upsert(
                [Point(point(number).point_id, point(number).vector, {**point(number).payload, "text": text})]
            )
        [found] = points.candidates([Query(text="the common valves")], 9)
    assert found.dense == []
    assert [uuid.UUID(each.point_id).int for each in found.words] == [2, 3, 0, 1]
    weights = bm25("english")
    stored = weights.embed_document(weighted_text({**point(2).payload, "text": texts[2]}))
    by_term = dict(zip(stored.indices, stored.values, strict=True))
    idf = {"common": log(1 + 0.5 / 4.5), "valves": log(1 + 3.5 / 1.5)}
    expected = sum(by_term[weights.embed_query(word).indices[0]] * value for word, value in idf.items())
    assert found.words[0].score == pytest.approx(expected, abs=1e-4)


def test_many_points_are_searched_in_segments_and_none_is_lost(
    edge: EdgeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I16"""
    monkeypatch.setattr("pipelines.corpus.edge._SEGMENT_POINTS", 500)
    edge.create(NAME, Schema(8))
    vectors = np.random.default_rng(0).standard_normal((3000, 8), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with edge.open(NAME) as points:
        for start in range(0, 3000, 250):
            numbers = range(start, start + 250)
            points.upsert(
                [Point(point(n).point_id, vectors[n], {**point(n).payload, "text": f"w{n}"}) for n in numbers]
            )
        points.delete("s", ["d"], keep=[point(n).point_id for n in range(2900)])
        points.flush()
        points.optimise()
    with edge.open(NAME) as points:
        assert points.count() == 2900
        assert len({each.point_id for each in points.scan()}) == 2900
        queries = [Query(vectors[n], f"w{n}") for n in range(0, 2900, 100)]
        for number, each in zip(range(0, 2900, 100), points.candidates(queries, 3), strict=True):
            assert each.dense[0].point_id == each.words[0].point_id == point(number).point_id


def unit_vectors(count: int, dimension: int) -> Vectors:
    vectors = np.random.default_rng(0).standard_normal((count, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def nearest(vectors: Vectors, asked: Vectors, count: int) -> list[list[str]]:
    """By brute force."""
    return [[point(n).point_id for n in row] for row in np.argsort(-(asked @ vectors.T), axis=1)[:, :count].tolist()]


def test_compressed_vectors_find_what_whole_ones_do(edge: EdgeIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.corpus.edge._SEGMENT_POINTS", 1000)
    edge.create(NAME, Schema(64))
    vectors = unit_vectors(3050, 64)
    held, asked = vectors[:3000], vectors[3000:]
    with edge.open(NAME) as points:
        for start in range(0, 3000, 500):
            points.upsert([Point(point(n).point_id, held[n], point(n).payload) for n in range(start, start + 500)])
        assert points._shard.info().indexed_vectors_count >= 3000
        found = points.candidates([Query(each, None) for each in asked], 30)
        assert [[hit.point_id for hit in each.dense[:10]] for each in found] == nearest(held, asked, 10)
        scores = [hit.score for hit in found[0].dense[:10]]
    assert scores == pytest.approx(sorted(held @ asked[0])[:-11:-1], abs=1e-5), "by the whole vectors"


def edges_a_point(edge: EdgeIndex) -> set[int]:
    return {json.loads(each.read_text())["m"] for each in edge._folder.rglob("hnsw_config.json")}


def test_segments_with_graphs_of_before_are_made_anew_without_one(
    edge: EdgeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qdrant_edge as qe

    monkeypatch.setattr("pipelines.corpus.edge._SEGMENT_POINTS", 500)
    today = _config(64)
    graphs = qe.EdgeConfig(
        vectors={DENSE: qe.EdgeVectorParams(size=64, distance=qe.Distance.Cosine)},
        sparse_vectors=today.sparse_vectors,
        hnsw_config=qe.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10),
        wal_enabled=False,
        optimizers=today.optimizers,
    )
    vectors = unit_vectors(1000, 64)
    with monkeypatch.context() as earlier:
        earlier.setattr("pipelines.corpus.edge._config", {64: graphs}.__getitem__)
        edge.create(NAME, Schema(64))
        with edge.open(NAME) as points:
            points.upsert([Point(point(n).point_id, vectors[n], point(n).payload) for n in range(1000)])
    assert edges_a_point(edge) == {16}
    with edge.open(NAME) as points:
        points.optimise()
        found = points.candidates([Query(each, None) for each in vectors[:50]], 30)
        assert [[hit.point_id for hit in each.dense[:10]] for each in found] == nearest(vectors, vectors[:50], 10)
    assert edges_a_point(edge) == {0}
    assert ids(edge) == list(range(1000))


def test_the_embedded_index_survives_being_closed_and_opened_by_another_process(edge: EdgeIndex) -> None:
    edge.create(NAME, SCHEMA)
    with edge.open(NAME) as points:
        points.upsert([point(1)])
        points.flush()
    code = (
        "import sys; from pathlib import Path; from pipelines.corpus.edge import EdgeIndex\n"
        f"with EdgeIndex(Path(sys.argv[1])).open({NAME!r}) as points: print(points.count())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(edge._folder)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "1"


def test_a_locked_embedded_index_says_what_to_do(edge: EdgeIndex) -> None:
    edge.create(NAME, SCHEMA)
    other = EdgeIndex(edge._folder, lock_seconds=0.1)
    said = r"Qdrant server \(QDRANT_URL\) for concurrent writers"
    with edge.open(NAME), pytest.raises(LockedError, match=said), other.open(NAME):
        pass
    with edge.open(NAME) as points:
        assert points.count() == 0


def test_a_damaged_embedded_collection_is_an_error_and_not_an_empty_one(edge: EdgeIndex) -> None:
    edge.create(NAME, SCHEMA)
    (edge._folder / NAME / "edge_config.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be opened"), edge.open(NAME):
        pass


def test_a_server_that_does_not_answer_is_a_passing_trouble() -> None:
    index = open_index(Environment(QDRANT_URL="http://127.0.0.1:9"))
    with pytest.raises(TransientError, match="QDRANT_URL"):
        index.exists(NAME)


def test_the_environment_chooses_the_index(tmp_path: Path) -> None:
    assert isinstance(open_index(Environment(FRESHET_HOME=tmp_path)), EdgeIndex)
    assert isinstance(open_index(Environment(QDRANT_URL="http://127.0.0.1:9")), ServerIndex)


def test_a_server_is_told_under_which_name_others_find_the_collection() -> None:
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:")
    index = ServerIndex(client)
    for name in ("test__one", "test__two"):
        index.create(name, Schema(4))
        for _ in range(2):
            index.publish("test", name)
        assert [(each.alias_name, each.collection_name) for each in client.get_aliases().aliases] == [("test", name)]
    client.close()
