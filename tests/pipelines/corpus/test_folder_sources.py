from __future__ import annotations

import hashlib
import os
import threading
import time
import timeit
import traceback
import zipfile
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipelines.corpus.documents import Document
from pipelines.corpus.settings import FolderSource, TableSource
from pipelines.corpus.sources import open_source
from pipelines.corpus.sources.base import Source
from pipelines.errors import ConfigError, DocumentError, SourceError, SourceUnavailableError
from pipelines.settings import without_credentials


def folder(base: Path, **settings: Any) -> Source:
    return open_source(FolderSource(name="docs", type="folder", **{"url": ".", **settings}), base=base)


def documents(source: Source) -> dict[str, Document]:
    return {listed.document_id: source.read(listed) for listed in source.list().documents}


def text(document: Document) -> str:
    return "\n".join(block.text for section in document.sections for block in section.blocks)


def ids(source: Source) -> list[str]:
    return [each.document_id for each in source.list().documents]


def settle() -> None:
    time.sleep(0.03)


def test_every_matching_file_is_a_document_with_its_path_as_id(tmp_path: Path) -> None:
    for name in ("a.md", "deep/er/b.txt", "c.bin", "deep/d.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    found = documents(folder(tmp_path))
    assert list(found) == ["a.md", "deep/d.html", "deep/er/b.txt"]
    assert found["deep/er/b.txt"].uri == (tmp_path / "deep/er/b.txt").as_uri()
    assert found["a.md"].title == "a"
    assert found["a.md"].updated_at is not None
    assert list(documents(folder(tmp_path, glob=("*.md",)))) == ["a.md"]


def test_the_version_of_a_file_changes_with_an_edit_even_at_equal_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("one")
    before = path.stat()
    settle()
    source = folder(tmp_path)
    [listed], [again] = source.list().documents, source.list().documents
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    settle()
    assert listed == again
    assert source.list().documents[0].version != listed.version


def test_a_linked_file_changes_when_its_target_does(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("one")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").symlink_to(target)
    source = folder(tmp_path / "docs")
    before = source.list().documents[0].version
    target.write_text("another")
    assert source.list().documents[0].version != before


def test_a_broken_link_is_listed_as_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.md").symlink_to(tmp_path / "nowhere")
    source = folder(tmp_path)
    with pytest.raises(DocumentError, match="cannot be read"):
        source.read(source.list().documents[0])


def test_a_file_name_that_is_no_text_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text("x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xffd.md")).write_text("x")
    source = folder(tmp_path)
    bad, good = source.list().documents
    assert source.read(good).document_id == "good.md"
    with pytest.raises(DocumentError, match="not UTF-8"):
        source.read(bad)


def test_any_fsspec_url_works_and_without_times_the_content_is_the_version() -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe("/freshet-test/a.md", b"# A\n\ntext")
    source = folder(Path("/"), url="memory://freshet-test")
    [listed] = source.list().documents
    assert listed.uri == "memory://freshet-test/a.md"
    assert text(source.read(listed)) == "text"
    files.pipe("/freshet-test/a.md", b"# A\n\ntext")
    assert source.list().documents[0].version == listed.version
    files.pipe("/freshet-test/a.md", b"# A\n\nnew")
    assert source.list().documents[0].version != listed.version
    files.rm("/freshet-test", recursive=True)


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("nowhere", SourceError, "does not exist"),
        ("file.md", SourceError, "is a file"),
        ("a\x00b", ConfigError, "no path"),
        ("nonsense://x", ConfigError, "Protocol not known"),
    ],
)
def test_a_folder_that_cannot_be_right_is_refused(tmp_path: Path, url: str, error: type[Exception], said: str) -> None:
    (tmp_path / "file.md").write_text("x")
    with pytest.raises(error, match=said):
        folder(tmp_path, url=url).list()


@pytest.mark.parametrize("glob", ["/etc/*", "../*.md"])
def test_a_glob_that_leaves_the_folder_is_refused(tmp_path: Path, glob: str) -> None:
    with pytest.raises(ConfigError, match="leaves its folder"):
        folder(tmp_path, glob=(glob,))


def test_passwords_in_urls_are_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        folder(tmp_path, url="nonsense://user:secret@host/x")
    assert "secret" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_subfolder_never_looks_empty(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(SourceError, match="may not be read"):
        folder(tmp_path).list()


def test_a_failing_listing_never_looks_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the operating system's refusal is put in its place."""
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match="may not be read"):
        folder(tmp_path).list()


def test_every_format_that_can_be_read_is_taken_in_capitals_too(tmp_path: Path) -> None:
    for name in ("a.MD", "b.Txt", "c.pdf", "d.PPTX", "e.eml", "f.exe", "md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "Sub").mkdir()
    (tmp_path / "Sub" / "g.Htm").write_text("x")
    assert ids(folder(tmp_path)) == ["Sub/g.Htm", "a.MD", "b.Txt", "c.pdf", "d.PPTX", "e.eml"]
    assert ids(folder(tmp_path, glob=("[ab].md", "Sub/**/*.?tm"))) == ["Sub/g.Htm", "a.MD"]
    assert ids(folder(tmp_path, glob=("sub/*.htm",))) == []


def test_a_touched_file_is_read_again_and_says_the_same(tmp_path: Path) -> None:
    """I14"""
    (tmp_path / "a.md").write_text("one")
    settle()
    source = folder(tmp_path)
    [before] = source.list().documents
    os.utime(tmp_path / "a.md", (1_700_000_000, 1_700_000_000))
    settle()
    [after] = source.list().documents
    assert after.version != before.version
    assert str(after.updated_at) == "2023-11-14 22:13:20+00:00"
    assert source.read(after).content_hash == source.read(before).content_hash


def test_a_file_from_the_future_settles_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one")
    os.utime(tmp_path / "a.md", (4_000_000_000, 4_000_000_000))
    settle()
    source = folder(tmp_path)
    [one], [two] = source.list().documents, source.list().documents
    assert one.version == two.version
    assert not one.version.endswith("~")


def test_a_file_that_was_just_written_is_read_once_more(tmp_path: Path) -> None:
    """A second edit within the same tick of the clock would have the same times and size."""
    (tmp_path / "a.md").write_text("one")
    source = folder(tmp_path)
    young = source.list().documents[0].version
    settle()
    assert young == source.list().documents[0].version + "~"


def test_a_file_that_is_too_large_is_listed_as_a_failure_and_never_read(tmp_path: Path) -> None:
    """I10, I19"""
    (tmp_path / "a.txt").write_bytes(b"x" * 101)
    (tmp_path / "b.txt").write_bytes(b"x" * 100)
    source = folder(tmp_path, max_bytes=100)
    large, small = source.list().documents
    assert text(source.read(small)) == "x" * 100
    with pytest.raises(DocumentError, match="more than max_bytes=100"):
        source.read(large)
    grown = replace(large, error=None)  # as one that grew since it was listed
    with pytest.raises(DocumentError, match="more than max_bytes=100"):
        source.read(grown)


def test_a_file_that_went_away_or_is_no_file_fails_alone(tmp_path: Path) -> None:
    """I10, I19"""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "pipe.txt")
    source = folder(tmp_path)
    listed = source.list().documents
    (tmp_path / "a.txt").unlink()
    gone, good, pipe = (found for _, found in source.read_all(listed))
    assert isinstance(good, Document)
    assert isinstance(gone, DocumentError)
    assert "No such file" in str(gone)
    assert isinstance(pipe, DocumentError)
    assert "no regular file" in str(pipe)


def test_a_name_with_signs_makes_a_valid_uri(tmp_path: Path) -> None:
    (tmp_path / "a b#c é.md").write_text("x")
    assert folder(tmp_path).list().documents[0].uri == (tmp_path / "a b#c é.md").as_uri()


def test_linked_folders_are_not_followed_and_names_that_only_look_like_files_are_folders(tmp_path: Path) -> None:
    (tmp_path / "docs" / "v1.md").mkdir(parents=True)
    (tmp_path / "docs" / "v1.md" / "a.md").write_text("x")
    (tmp_path / "docs" / "again.md").symlink_to(tmp_path / "docs", target_is_directory=True)
    assert ids(folder(tmp_path / "docs")) == ["v1.md/a.md"]


def test_thousands_of_files_are_listed_at_the_cost_of_asking_for_each(tmp_path: Path) -> None:
    for number in range(2000):
        path = tmp_path / f"d{number % 20}" / f"{number}.md"
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def bare() -> int:
        return sum(os.stat(Path(at, name)).st_size for at, _, names in os.walk(tmp_path) for name in names)  # noqa: PTH116 the yardstick

    source = folder(tmp_path)
    assert len(source.list().documents) == 2000
    assert min(timeit.repeat(source.list, number=1, repeat=5)) < 4 * min(timeit.repeat(bare, number=1, repeat=5))


class Site(BaseHTTPRequestHandler):
    """A web server's index pages; ``answers`` maps a path to a status and a body."""

    answers: ClassVar[dict[str, tuple[int, bytes]]] = {}
    tags: ClassVar[bool] = True

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path, (404, b"none"))
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if self.path.endswith(".md") else "text/html")
        self.send_header("Content-Length", str(len(body)))
        if self.tags and status == 200:
            self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')  # noqa: S324 a tag
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 the name of the protocol

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    links = (
        b'<a href="../">up</a><a href="?C=N">sort</a><a href="a.md">a</a><a href="sub/">sub</a><a href="/x.md">x</a>'
    )
    Site.answers = {
        "/docs/": (200, links),
        "/docs": (200, links),
        "/docs/a.md": (200, b"# A\n\nfirst"),
        "/docs/sub/": (200, b'<a href="b.md">b</a>'),
        "/docs/sub/b.md": (200, b"second"),
    }
    Site.tags = True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/docs"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("tags", [True, False])
def test_index_pages_of_a_web_server_are_a_folder(site: str, *, tags: bool) -> None:
    Site.tags = tags
    source = folder(Path("/"), url=site)
    first = source.list().documents
    assert [each.uri for each in first] == [f"{site}/a.md", f"{site}/sub/b.md"]
    assert [text(found) for _, found in source.read_all(first)] == ["first", "second"]
    assert source.list().documents == first
    Site.answers["/docs/a.md"] = (200, b"edited")
    assert [one.version == two.version for one, two in zip(source.list().documents, first, strict=True)] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("path", "answer", "error"),
    [
        ("/docs/sub/", (403, b""), SourceError),
        ("/docs/sub/", (404, b""), SourceUnavailableError),
        ("/docs/sub/b.md", (500, b""), SourceUnavailableError),
        ("/docs", (404, b""), SourceError),
        ("/docs", (200, b"please log in"), SourceError),
        ("/docs", (200, b'<a href="deeper/">x</a>'), SourceError),
    ],
)
def test_a_web_folder_that_cannot_be_read_never_looks_smaller(
    site: str, path: str, answer: tuple[int, bytes], error: type[Exception]
) -> None:
    """I7"""
    Site.answers |= {path: answer, "/docs/" if path == "/docs" else path: answer}
    if b"deeper" in answer[1]:
        Site.answers = defaultdict(lambda: answer)
    with pytest.raises(error):
        folder(Path("/"), url=site).list()


def test_a_page_that_is_refused_fails_alone(site: str) -> None:
    """I10, I19"""
    Site.answers["/docs/a.md"] = (403, b"")
    source = folder(Path("/"), url=site)
    bad, good = source.list().documents
    assert text(source.read(good)) == "second"
    with pytest.raises(DocumentError, match="403"):
        source.read(bad)


def test_a_web_server_that_is_away_is_unavailable(site: str) -> None:
    """I7"""
    port = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    port.server_close()
    with pytest.raises(SourceUnavailableError):
        folder(Path("/"), url=f"http://127.0.0.1:{port.server_port}/docs").list()


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("http://user:pass-word@{}", {}),
        ("http://refused:pass-word@{}", {}),
        ("http://{}?token=pass-word", {}),
        ("http://{}", {"headers": {"X": "pass-word"}}),
    ],
)
def test_secrets_of_the_url_and_the_options_are_in_no_message(site: str, address: str, options: dict[str, Any]) -> None:
    place = site.removeprefix("http://").replace("docs", "nowhere")
    Site.answers["/nowhere"] = (500 if "refused" in address else 404, b"")
    settings = FolderSource(name="d", type="folder", url=address.format(place), options=options)
    assert settings.origin == f"http://{place}"
    with pytest.raises((SourceError, SourceUnavailableError)) as caught:
        open_source(settings, base=Path("/")).list()
    lines = "".join(traceback.format_exception(caught.value)) + str(options and repr(settings))
    assert "pass-word" not in lines
    assert b64encode(b"refused:pass-word").decode() not in lines


def test_a_file_system_that_lacks_an_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"options: .*'org'"):
        folder(tmp_path, url="github://documents")


@pytest.mark.parametrize("chained", ["zip://::{}", "zip://docs::{}"])
def test_an_archive_is_a_folder(tmp_path: Path, chained: str) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("docs/a.md", "first")
    source = folder(tmp_path, url=chained.format(tmp_path / "all.zip"))
    assert [text(found) for _, found in source.read_all(source.list().documents)] == ["first"]


def test_a_table_on_a_web_server(site: str) -> None:
    """I7"""
    Site.answers["/docs/t.csv"] = (200, b"id,name\n1,Pump\n")
    settings = TableSource(name="t", type="table", url=f"{site}/t.csv", key="id", text="{name}")
    source = open_source(settings, base=Path("/"))
    assert [text(found) for _, found in source.read_all(source.list().documents)] == ["Pump"]
    for status, error in ((404, SourceError), (403, SourceError), (500, SourceUnavailableError)):
        Site.answers["/docs/t.csv"] = (status, b"")
        with pytest.raises(error):
            source.list()
    away = settings.model_copy(update={"url": "http://127.0.0.1:9/t.csv"})
    with pytest.raises(SourceUnavailableError):
        open_source(away, base=Path("/")).list()
    source.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pa/ss@host/x@y?token=pass", "https://user:pa/ss@host/x@y"),  # by the standard, user is the host
        ("https://user:p@ss@host/x@y?token=p@ss#p@ss", "https://host/x@y"),
        ("postgresql://user:p@ss/w@host:5432/db?password=p@ss/w", "postgresql://host:5432/db"),
        ("s3://bucket/a?b#c@d", "s3://bucket/a?b#c@d"),
        ("zip://docs::https://user:p@ss@host/x.zip", "zip://docs::https://host/x.zip"),
        ("sqlite:///a@b/c#d.db", "sqlite:///a@b/c#d.db"),
        ("a/b@c?d#e", "a/b@c?d#e"),
    ],
)
def test_urls_are_shown_without_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
