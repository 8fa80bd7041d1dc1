"""The same operations on every index."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.index import Point, Query, Schema, StoredPoint, VectorIndex, open_index
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


def test_an_engine_lock_held_by_another_program_counts_too(edge: EdgeIndex) -> None:
    import qdrant_edge

    edge.create(NAME, SCHEMA)
    shard = qdrant_edge.EdgeShard.load(str(edge._folder / NAME))
    with pytest.raises(LockedError), edge.open(NAME):
        pass
    shard.close()


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
