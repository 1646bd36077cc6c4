"""Compressed responses: negotiation, ETags, and the same content on every path."""

import asyncio
import re
import secrets
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quart import Quart, Response
from quart_schema.validation import QUART_SCHEMA_RESPONSE_ATTRIBUTE

from service.http import compression
from service.http.compression import (
    MAX_CACHE_SIZE,
    MAX_FIELD_SIZE,
    MIN_SIZE,
    SECRET,
    THREAD_SIZE,
    CompressedBodies,
    negotiate,
    stream_compressor,
)
from tests.codings import decode, tag_for
from tests.conftest import Site, settings_for, visiting
from tests.factories import Factory

BUNDLE = "/docs/swagger-ui-bundle.js"
FIELD = st.one_of(
    st.lists(
        st.tuples(
            st.sampled_from(["gzip", "zstd", "x-gzip", "identity", "*", "br", "GZIP", "", "é"]),
            st.sampled_from(["", ";q=0", ";q=1", "; q=0.5", ";Q=0.001", ";q=1.1", ";q", ";a=1"]),
        ).map("".join),
        max_size=5,
    ).map(", ".join),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f")),
)


class Received(NamedTuple):
    """A response as it was sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> bytes:
        """The decoded body."""
        return decode(self.headers, self.body)


class Compressions:
    """The calls of `compress`: the thread and the size of each body."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int]] = []
        self._compress = compression.compress
        patch.setattr(compression, "compress", self)

    def __call__(self, coding: compression.Coding, body: bytes) -> bytes:
        self.calls.append((threading.get_ident(), len(body)))
        return self._compress(coding, body)


async def get(
    client: httpx.AsyncClient,
    path: str,
    accept: str = "identity",
    method: str = "GET",
    **headers: str,
) -> Received:
    """Request a path; the body stays as it was sent."""
    fields = {b"Accept-Encoding": accept.encode("latin-1")}
    fields |= {name.encode(): value.encode() for name, value in headers.items()}
    async with client.stream(method, path, headers=fields) as response:
        body = b"".join([part async for part in response.aiter_raw()])
        return Received(response.status_code, dict(response.headers), body)


@pytest.fixture
async def books(client: httpx.AsyncClient, make: Factory) -> httpx.AsyncClient:
    """A client of a catalogue whose list has more than 1 KiB, and whose book 'long' has, too."""
    for number in range(8):
        await make.book(title=f"Book {number}")
    return client


@pytest.mark.parametrize(
    ("field", "coding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=0.9, zstd;q=0.8", "gzip"),
        ("*", "zstd"),
        ("*;q=0", None),
        ("zstd;q=0, *", "gzip"),
        ("identity", None),
        ("gzip;q=0.5, identity;q=0.4", "gzip"),
        ("gzip;q=0.4, identity;q=0.5", None),
        ("gzip;q=0.1, *;q=0.5, zstd;q=0.1", None),
        ("identity;q=0", None),
        ("x-gzip", "gzip"),
        ("GZip;Q=0.5", "gzip"),
        (" gzip ; q=0.5 ,, zstd;q=0.001", "gzip"),
        ("gzip;q=1.5, zstd;q=.5, br", None),
        ("gzip;q=0.1;a=b", None),
        ("gzip," + " " * MAX_FIELD_SIZE, None),
    ],
)
def test_the_coding_of_the_highest_quality_is_chosen(field: str, coding: str | None) -> None:
    assert negotiate([field.encode()]) == coding
    assert negotiate(field.encode().split(b",")) == coding or len(field) > MAX_FIELD_SIZE


async def test_any_accept_encoding_gives_the_same_content(books: httpx.AsyncClient) -> None:
    """Cold, remembered, and from Quart; the ETag is the one of the sent form."""
    plain = {path: await get(books, path) for path in ("/api/books", "/openapi.json")}
    codings: dict[str, set[str | None]] = {path: set() for path in plain}

    @settings(max_examples=40, deadline=None, database=None)
    @given(FIELD)
    def check(field: str) -> None:
        fields.append(field.strip())

    fields: list[str] = ["gzip", "zstd"]
    check()
    for field in fields:
        for path, expected in plain.items():
            response = await get(books, path, field)
            assert response.status == 200
            assert response.content == expected.body, field
            assert int(response.headers["content-length"]) == len(response.body)
            assert response.headers["vary"].startswith("Accept-Encoding")
            assert response.headers["etag"] == tag_for(response.headers, expected.body)
            codings[path].add(response.headers.get("content-encoding"))
    assert codings == {path: {None, "gzip", "zstd"} for path in plain}


@pytest.mark.parametrize("path", ["/api/books", "/openapi.json"])
async def test_every_form_of_a_tag_matches(books: httpx.AsyncClient, path: str) -> None:
    """304 has the ETag of the form that would be sent now, on every path."""
    forms = [(await get(books, path, coding)).headers["etag"] for coding in ("", "gzip", "zstd")]
    assert len(set(forms)) == 3
    for accept, own in zip(("", "gzip", "zstd"), forms, strict=True):
        for tag in (*forms, f"W/{forms[1]}", f'"x", {forms[2]}', "*"):
            response = await get(books, path, accept, **{"If-None-Match": tag})
            assert (response.status, response.headers["etag"]) == (304, own)
            assert not {"content-encoding", "content-length"} & set(response.headers)
            assert response.headers["vary"].startswith("Accept-Encoding")
        for tag in (forms[1][:-1], f'{forms[1][:-1]}x"', f'"x{forms[0][1:]}', forms[0].strip('"')):
            response = await get(books, path, accept, **{"If-None-Match": tag})
            assert response.status == 200


async def test_head_has_the_headers_of_get(books: httpx.AsyncClient) -> None:
    names = ("content-encoding", "content-length", "etag", "vary", "content-type")
    for path in ("/api/books", "/openapi.json"):
        responses = [await get(books, path, "gzip", method) for method in ("GET", "HEAD")]
        full, bare = ({name: each.headers[name] for name in names} for each in responses)
        assert full == bare
        assert responses[1].body == b""


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_remembered_list_is_compressed_once(
    books: httpx.AsyncClient, make: Factory, coding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the first response was a 304. A write ends each form."""
    plain = await get(books, "/api/books")
    compressions = Compressions(monkeypatch)
    tag = {"If-None-Match": plain.headers["etag"]}
    assert (await get(books, "/api/books", coding, **tag)).status == 304
    for _ in range(3):
        response = await get(books, "/api/books", coding)
        assert response.headers["cache-status"] == "Octavo; hit"
        assert response.content == plain.body
    assert len(compressions.calls) == 1
    await make.book(title="New")
    response = await get(books, "/api/books", coding)
    assert response.content != plain.body
    assert response.content == (await get(books, "/api/books")).body


async def test_a_cached_item_over_the_minimum_is_compressed(
    client: httpx.AsyncClient, make: Factory
) -> None:
    book = await make.book(title="書" * 200, author="作" * 100)
    path = f"/api/books/{book.id}"
    plain = await get(client, path)
    assert len(plain.body) > MIN_SIZE
    for _ in range(3):
        for accept in ("gzip", "zstd", "identity"):
            response = await get(client, path, accept)
            assert response.content == plain.body
            assert response.headers.get("content-encoding", "identity") == accept
            assert response.headers["etag"] == tag_for(response.headers, plain.body)
        assert response.headers["cache-status"] == "Octavo; hit"


async def test_short_bodies_and_errors(client: httpx.AsyncClient, make: Factory) -> None:
    """A short body stays plain; a long error is compressed as any other body."""
    book = await make.book()
    for path in (f"/api/books/{book.id}", "/health/live", "/api/nothing"):
        response = await get(client, path, "gzip")
        assert "content-encoding" not in response.headers
        assert len(response.body) <= MIN_SIZE
    query = "&".join(f"unknown{number}=1" for number in range(30))
    response = await get(client, f"/api/books?{query}", "gzip")
    assert (response.status, response.headers["content-encoding"]) == (400, "gzip")
    assert response.headers["content-type"] == "application/problem+json"


async def test_responses_with_secrets_are_never_compressed(site: Site) -> None:
    """A route that returns a token, a key or a secret declares it."""
    secret = re.compile("token$|key$|secret$")
    declared, expected = set(), set()
    for rule in site.app.url_map.iter_rules():
        view = site.app.view_functions[rule.endpoint]
        if hasattr(view, SECRET):
            declared.add(rule.endpoint)
        for model, *_ in getattr(view, QUART_SCHEMA_RESPONSE_ATTRIBUTE, {}).values():
            fields = getattr(model, "model_fields", {})
            if any(secret.search(name) for name in fields):
                expected.add(rule.endpoint)
    assert declared == expected
    assert declared >= {"auth.login", "auth.refresh"}


async def test_what_a_view_of_quart_says_is_respected(site: Site, folder: Path) -> None:
    """A secret, `no-transform`, another coding, and media that are compressed already."""
    body, secret = b"a" * 2_000, "/secret"

    def add(app: Quart) -> None:
        for path, headers in {
            "/plain": {},
            "/no-transform": {"Cache-Control": "no-store, no-transform"},
            "/coded": {"Content-Encoding": "br"},
            "/image": {"Content-Type": "image/png"},
            "/strong": {"ETag": '"mine"'},
            "/weak": {"ETag": 'W/"mine"'},
            secret: {},
        }.items():

            async def view(headers: dict[str, str] = headers) -> Response:
                return Response(body, headers={"Content-Type": "text/plain"} | headers)

            app.add_url_rule(
                path, path, compression.secret_response(view) if path == secret else view
            )

        async def stream() -> Response:
            async def parts() -> AsyncIterator[bytes]:
                yield body
                yield body

            return Response(parts(), content_type="text/plain")

        app.add_url_rule("/stream", "stream", stream)

    async with visiting(settings_for(site.another_url, folder), add) as client:
        responses = {
            path: await get(client, path, "gzip")
            for path in ("/plain", "/no-transform", "/coded", "/image", "/strong", "/weak", secret)
        }
        coded = {path for path, each in responses.items() if each.body != body}
        assert coded == {"/plain", "/strong", "/weak"}
        assert {path: responses[path].content for path in coded} == dict.fromkeys(coded, body)
        # The view compares its tag itself, so the tag keeps its text.
        assert (
            responses["/strong"].headers["etag"] == responses["/weak"].headers["etag"] == 'W/"mine"'
        )
        assert (await get(client, "/stream", "gzip")).body == body * 2


async def test_compression_can_be_turned_off(site: Site, make: Factory, folder: Path) -> None:
    for number in range(8):
        await make.book(title=f"Book {number}")
    async with visiting(settings_for(site.another_url, folder, compression=False)) as client:
        for _ in range(3):
            response = await get(client, "/api/books", "gzip, zstd")
            assert len(response.body) > MIN_SIZE
            assert "content-encoding" not in response.headers
            assert response.headers["etag"] == tag_for({}, response.body)


async def test_a_large_body_is_compressed_once_in_a_thread(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressions = Compressions(monkeypatch)
    async with visiting(settings_for(site.another_url, folder)) as client:
        plain = await get(client, BUNDLE)
        assert len(plain.body) > THREAD_SIZE
        responses = await asyncio.gather(*(get(client, BUNDLE, "gzip") for _ in range(5)))
    assert {response.content for response in responses} == {plain.body}
    ((thread, size),) = compressions.calls
    assert (thread != threading.get_ident(), size) == (True, len(plain.body))


async def test_the_cache_of_compressed_bodies_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    compressions, bodies = Compressions(monkeypatch), CompressedBodies()
    size = THREAD_SIZE // 2
    parts = [secrets.token_bytes(size) for _ in range(MAX_CACHE_SIZE // size + 1)]
    for number, part in enumerate(parts):
        await bodies.compress("gzip", part, str(number))
        await bodies.compress("gzip", parts[0], "0")  # in use
    assert len(compressions.calls) == len(parts)
    await bodies.compress("gzip", parts[1], "1")
    assert len(compressions.calls) == len(parts) + 1
    for _ in range(2):
        await bodies.compress("gzip", parts[0], None)
    assert len(compressions.calls) == len(parts) + 3


@pytest.mark.parametrize("coding", get_args(compression.Coding))
def test_a_stream_is_compressed_in_parts(coding: Any) -> None:
    parts = [b'{"id": %d, "title": "Book"}\n' % number * 50 for number in range(200)]
    compressor = stream_compressor(coding)
    data = [compressor.compress(part) for part in parts] + [compressor.flush()]
    assert decode({"content-encoding": coding}, b"".join(data)) == b"".join(parts)
    assert sum(map(len, data)) < sum(map(len, parts)) / 10
