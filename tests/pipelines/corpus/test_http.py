"""The client that APIs, pages and feeds are read with."""

from __future__ import annotations

import email.utils
import gzip
import logging
import socket
import ssl
import time
import traceback
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.corpus.settings import HeaderAuth, HttpSettings
from pipelines.corpus.sources import http
from pipelines.corpus.sources.http import Client, normalised
from pipelines.errors import ConfigError, SourceError, SourceUnavailableError
from tests.pipelines.corpus.web_server import Answer, Asked, Site, certificate, open_site, resolve

SECRET = "s3cr3t-t0ken"


def client(*urls: str, **settings: Any) -> Client:
    return Client("docs", HttpSettings(**{"allow_private": True, **settings}), urls)


def test_an_answer_comes_decompressed_with_its_validators(site: Site) -> None:
    site.pages["/a"] = Answer("hello " * 100, etag='"1"', gzipped=True, type="text/plain; charset=utf-8")
    response = client().get(f"{site.url}/a#part")
    assert response.body == b"hello " * 100
    assert (response.content_type, response.url) == ("text/plain", f"{site.url}/a")
    assert client().get(f"{site.url}/a", validators=response.validators).status == 304
    assert site.asked[0].headers["user-agent"] == "Freshet"


def test_a_page_changed_within_the_last_second_is_not_asked_for_by_time(site: Site) -> None:
    """I18: the second edit within a second bears the time of the first."""
    now = email.utils.formatdate(usegmt=True)
    site.pages["/new"] = Answer("x", headers={"Last-Modified": now})
    site.pages["/old"] = Answer("x", headers={"Last-Modified": "Fri, 01 May 2026 12:00:00 GMT"})
    assert client().get(f"{site.url}/new").validators == {}
    assert client().get(f"{site.url}/old").validators["If-Modified-Since"] == "Fri, 01 May 2026 12:00:00 GMT"


def test_passing_faults_are_tried_again(site: Site) -> None:
    answers = iter([Answer(status=502), Answer(status=429, headers={"Retry-After": "0"}), Answer("here")])
    site.pages["/a"] = lambda _: next(answers)
    assert client().get(f"{site.url}/a").body == b"here"


@pytest.mark.parametrize("dated", [False, True], ids=["seconds", "date"])
def test_a_server_that_asks_to_wait_is_waited_for(site: Site, dated: bool) -> None:
    after = email.utils.formatdate(time.time() + 2, usegmt=True) if dated else "1"
    answers = iter([Answer(status=429, headers={"Retry-After": after}), Answer("here")])
    site.pages["/a"] = lambda _: next(answers)
    assert client().get(f"{site.url}/a").body == b"here"
    assert site.asked[1].at - site.asked[0].at >= 0.9


def test_while_a_server_is_waited_for_nothing_else_is_asked_of_it(site: Site) -> None:
    from concurrent.futures import ThreadPoolExecutor

    answers = iter([Answer(status=429, headers={"Retry-After": "1"}), Answer("here")])
    site.pages |= {"/a": lambda _: next(answers), "/b": Answer("there")}
    asking = client()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(asking.get, f"{site.url}/a")
        while not site.asked:
            time.sleep(0.01)
        time.sleep(0.2)
        asking.get(f"{site.url}/b")
        assert waiting.result().body == b"here"
    assert min(asked.at for asked in site.asked[1:]) - site.asked[0].at >= 0.9


def test_a_server_that_asks_to_wait_long_is_left_alone(site: Site) -> None:
    site.pages["/a"] = Answer(status=503, headers={"Retry-After": "3600"})
    with pytest.raises(SourceUnavailableError, match="asks to wait 3600 s"):
        client().get(f"{site.url}/a")
    assert len(site.asked) == 1


def test_a_server_that_only_fails_is_unavailable_and_then_not_bothered_further(site: Site) -> None:
    site.pages["/a"] = Answer(status=500)
    asking = client()
    with pytest.raises(SourceUnavailableError, match="status 500, 3 times"):
        asking.get(f"{site.url}/a")
    dead = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{dead.getsockname()[1]}/"
    dead.close()
    for _ in range(5):
        with pytest.raises(SourceUnavailableError, match="refused"):
            asking.get(url)
    with pytest.raises(SourceUnavailableError, match="failed to answer 5 times in a row"):
        asking.get(url)


def test_a_refusal_is_an_answer_and_not_tried_again(site: Site) -> None:
    site.pages["/a"] = Answer(status=403)
    assert client().get(f"{site.url}/a").status == 403
    assert len(site.asked) == 1


@pytest.mark.parametrize("page", [Answer("x" * 60, drip=0.1), lambda _: time.sleep(3) or Answer("late")])
def test_an_answer_that_takes_too_long_is_given_up_even_when_bytes_keep_coming(site: Site, page: Any) -> None:
    site.pages["/a"] = page
    started = time.monotonic()
    with pytest.raises(SourceUnavailableError, match="Timeout"):
        client(timeout_seconds=0.3).get(f"{site.url}/a")
    assert time.monotonic() - started < 2.5


def test_too_large_answers_are_refused_before_they_fill_the_memory(site: Site) -> None:
    site.pages["/long"] = Answer("x" * 5000)
    site.pages["/bomb"] = Answer(b"\0" * 50_000_000, gzipped=True)
    site.pages["/chunks"] = Answer("x" * 5000, headers={"Content-Length": "5000"})
    for path, why in [("/long", "5000 bytes, more than max_bytes=1000"), ("/bomb", "more than max_bytes=")]:
        most = 1000 if path == "/long" else 100_000
        with pytest.raises(SourceError, match=why):
            client(max_bytes=most).get(site.url + path)
    bomb = gzip.compress(b"\0" * 50_000_000)
    tracemalloc.start()
    with pytest.raises(SourceError, match="when decompressed"):
        http.gunzip([bomb], 1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_several_compressed_parts_are_one_and_a_torn_one_is_none() -> None:
    parts = gzip.compress(b"one ") + gzip.compress(b"two")
    assert http.gunzip([parts[:10], parts[10:]], 100) == b"one two"
    with pytest.raises(SourceError, match="ends in the middle"):
        http.gunzip([parts[:-9]], 100)
    with pytest.raises(SourceError, match="cannot be decompressed"):
        http.gunzip([b"no gzip"], 100)


def test_redirects_are_followed_a_few_times(site: Site) -> None:
    site.pages |= {
        "/old": Answer(status=301, headers={"Location": "/new"}),
        "/new": Answer("here"),
        "/now": Answer(status=302, headers={"Location": "new"}),
        "/loop": Answer(status=302, headers={"Location": "/loop"}),
        "/odd": Answer(status=302, headers={"Location": "file:///etc/passwd"}),
    }
    asking = client()
    old, now = asking.get(f"{site.url}/old"), asking.get(f"{site.url}/now")
    assert (old.url, old.moved, now.url, now.moved) == (f"{site.url}/new", True, f"{site.url}/new", False)
    with pytest.raises(SourceError, match="redirects more than 5 times"):
        asking.get(f"{site.url}/loop")
    with pytest.raises(SourceError, match="only http"):
        asking.get(f"{site.url}/odd")


def test_validators_of_one_page_are_not_sent_to_another_that_a_redirect_leads_to_by_now(site: Site) -> None:
    site.pages |= {
        "/latest": Answer(status=302, headers={"Location": "/v1"}),
        "/v1": Answer("one", etag='"e"'),
        "/v2": Answer("two", etag='"e"'),
    }
    first = client().get(f"{site.url}/latest")
    assert client().get(f"{site.url}/latest", validators=first.validators).status == 304
    site.pages["/latest"] = Answer(status=302, headers={"Location": "/v2"})
    assert client().get(f"{site.url}/latest", validators=first.validators).body == b"two"


# --- what may be connected to


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "[::]"])
def test_private_addresses_are_refused(site: Site, host: str) -> None:
    site.pages["/"] = Answer("inside")
    with pytest.raises(SourceError, match="no public address; say allow_private"):
        client(allow_private=False).get(f"http://{host}:{site.port}/")
    assert not site.asked


def test_a_name_that_leads_to_a_private_address_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, docs_example_com="127.0.0.1")
    with pytest.raises(SourceError, match=r"docs\.example\.com is 127\.0\.0\.1"):
        client(allow_private=False).get(f"http://docs.example.com:{site.port}/")
    assert not site.asked


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "100.100.100.200",
    ],
)
def test_metadata_services_are_refused_even_where_private_addresses_are_allowed(host: str) -> None:
    with pytest.raises(SourceError, match="only their machines may know"):
        client().get(f"http://{host}/latest/meta-data/")


def test_a_redirect_to_a_private_address_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages |= {"/": Answer(status=302, headers={"Location": f"http://127.0.0.1:{site.port}/inside"})}
    real = http._refused
    public = iter([None])  # the first hop is taken for public
    monkeypatch.setattr(http, "_refused", lambda *a, **k: next(public, real(*a, **k)))
    resolve(monkeypatch, docs_example_com="127.0.0.1")
    with pytest.raises(SourceError, match=r"127\.0\.0\.1 is 127\.0\.0\.1, which is no public"):
        client(allow_private=False).get(f"http://docs.example.com:{site.port}/")
    assert [asked.path for asked in site.asked] == ["/"]


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers another address the second time has nobody to answer."""
    answers = iter(["198.41.0.4", "127.0.0.1"])
    connected: list[str] = []

    def resolved(host: str, port: int, **_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address: tuple[str, int], *_: Any, **__: Any) -> Any:
        connected.append(address[0])
        raise OSError("nobody there")

    monkeypatch.setattr(http, "_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(SourceError, match=r"is 127\.0\.0\.1"):
        client(allow_private=False).get("http://docs.example.com/")
    assert connected == ["198.41.0.4"]


def test_the_host_keeps_its_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, docs_example_com="127.0.0.1")
    site.pages["/"] = Answer("here")
    assert client().get(f"http://docs.example.com:{site.port}/").body == b"here"
    assert site.asked[0].headers["host"] == f"docs.example.com:{site.port}"


@pytest.fixture
def safe_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Site, Path]]:
    pem = certificate(tmp_path, "docs.example.com")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    for site in open_site(monkeypatch, context):
        yield site, pem


def test_certificates_are_verified_for_the_name(safe_site: tuple[Site, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    site, pem = safe_site
    resolve(monkeypatch, docs_example_com="127.0.0.1", other_example_com="127.0.0.1")
    site.pages["/"] = Answer("here")
    site.pages["/plain"] = Answer(status=302, headers={"Location": "http://docs.example.com/"})
    url = f"https://docs.example.com:{site.port}/"
    with pytest.raises(SourceError, match="certificate is not valid"):
        client().get(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    assert client().get(url).body == b"here"
    with pytest.raises(SourceError, match=r"certificate is not valid.*other\.example\.com"):
        client().get(f"https://other.example.com:{site.port}/")
    with pytest.raises(SourceError, match="redirects from https to http"):
        client().get(f"{url}plain")


# --- secrets


def test_the_secret_goes_to_its_own_host_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setattr(http, "_BACKOFF_SECONDS", 0.01)
    for other in open_site(monkeypatch):
        site.pages |= {
            "/away": Answer(status=302, headers={"Location": f"{other.url}/there"}),
            "/stay": Answer(status=302, headers={"Location": "/here"}),
            "/here": Answer("here"),
        }
        other.pages["/there"] = Answer("there")
        asking = client(site.url, auth=HeaderAuth(env="MY_TOKEN"), headers={"X-Key": "k3y"})
        asking.get(f"{site.url}/stay")
        assert [asked.headers["authorization"] for asked in site.asked] == [f"Bearer {SECRET}"] * 2
        assert asking.get(f"{site.url}/away").body == b"there"
        assert not {"authorization", "x-key"} & other.asked[0].headers.keys()


def test_no_message_says_the_secret(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    caplog.set_level(logging.DEBUG)

    def reflect(asked: Asked) -> Answer:
        return Answer(status=302, headers={"Location": f"ftp://x/{asked.headers['authorization'].split()[-1]}"})

    def loop(asked: Asked) -> Answer:
        return Answer(status=302, headers={"Location": f"/loop/{SECRET}?key={SECRET}"})

    site.pages |= {"/a": reflect, "/b": Answer(status=500), "/loop": loop, f"/loop/{SECRET}": loop}
    asking = client(site.url, auth=HeaderAuth(env="MY_TOKEN"))
    said = caplog.text + repr(asking) + repr(HttpSettings(headers={"X-Key": SECRET}))
    for path in ("/a", "/b", "/loop"):
        with pytest.raises((SourceError, SourceUnavailableError)) as caught:
            asking.get(f"{site.url}{path}?key={SECRET}")
        said += "".join(traceback.format_exception(caught.value))
    assert "status 500" in said
    assert SECRET not in said
    assert not [
        record for record in caplog.records if SECRET in record.getMessage() and record.name != "httpcore.http11"
    ]


def test_a_secret_that_is_not_there_is_named_and_a_torn_one_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="environment variable MY_TOKEN is not set"):
        client(auth=HeaderAuth(env="MY_TOKEN"))
    monkeypatch.setenv("MY_TOKEN", f"{SECRET}\nX-Evil: 1")
    with pytest.raises(ConfigError, match="characters that no header may have") as caught:
        client(auth=HeaderAuth(env="MY_TOKEN"))
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="state them with 'auth'") as caught:
        client("https://user:pa55@example.com/")
    assert "pa55" not in str(caught.value)


# --- manners


def test_one_host_is_not_asked_more_often_or_more_at_once_than_allowed(site: Site) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def slow(_: Asked) -> Answer:
        time.sleep(0.03)
        return Answer("x")

    site.pages["/"] = slow
    asking = client(connections=2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(asking.get, [site.url] * 12))
    assert site.most_at_once == 2
    site.asked.clear()
    asking = client(delay_seconds=0.1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(asking.get, [site.url] * 5))
    times = sorted(asked.at for asked in site.asked)
    assert times[-1] - times[0] >= 0.25, "0.4 as they are sent; a busy machine lets the first one in late"


def test_one_page_has_one_address() -> None:
    assert normalised(" HTTP://Example.COM:80#top ") == "http://example.com/"
    assert normalised("https://münchen.de/straße?q=ä b") == "https://xn--mnchen-3ya.de/stra%C3%9Fe?q=%C3%A4%20b"
    assert normalised("https://example.com:8443/a%20b?x=1&y=%2F") == "https://example.com:8443/a%20b?x=1&y=%2F"
    assert normalised("http://[2001:DB8::1]:80/") == "http://[2001:db8::1]/"
    for wrong in ("ftp://example.com/", "https:///x", "file:///etc/passwd", "https://a:b@example.com/", "x"):
        with pytest.raises(ValueError, match=r"only http|user or password"):
            normalised(wrong)
