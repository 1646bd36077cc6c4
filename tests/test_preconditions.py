"""Conditional writes: If-Match and If-None-Match on PUT, PATCH and DELETE of books."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import product
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.preconditions import ANY, parse_tags
from tests.conftest import Site, settings_for, visiting
from tests.factories import Factory, Member
from tests.http_client import assert_problem, send_raw

OTHER = '"0123456789abcdef01234567"'
ETAGC = "!" + "".join(map(chr, range(0x23, 0x7F))) + "".join(map(chr, range(0x80, 0x100)))
opaque = st.text(st.sampled_from(ETAGC), max_size=8).map(lambda text: f'"{text}"')
members = st.tuples(st.sampled_from(["", "W/"]), opaque)
blanks = st.text(st.sampled_from(" \t"), max_size=3)


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[str], set[str]]:
    """Draw the field lines of a list with empty elements, and the tags in it."""
    tags = draw(st.lists(members, max_size=5))
    elements = ["".join(tag) for tag in tags]
    for place in draw(st.lists(st.integers(0, len(elements)), max_size=3)):
        elements.insert(place, "")
    padded = [draw(blanks) + element + draw(blanks) for element in elements]
    cut = draw(st.integers(0, len(padded)))
    return [",".join(padded[:cut]), ",".join(padded[cut:])], {tag for _, tag in tags}


def strictly_parsed(value: str) -> set[str] | None:
    """Parse by the grammar of RFC 9110, a character at a time. None: the value is malformed."""
    if value == "*":
        return {"*"}
    tags: set[str] = set()
    at, needs_comma = 0, False
    while at < len(value):
        if value[at] in " \t,":
            needs_comma = needs_comma and value[at] != ","
            at += 1
            continue
        at += 2 if value.startswith("W/", at) else 0
        end = value.find('"', at + 1)
        if needs_comma or value[at : at + 1] != '"' or end < 0:
            return None
        if not set(value[at + 1 : end]) <= set(ETAGC):
            return None
        tags.add(value[at : end + 1])
        at, needs_comma = end + 1, True
    return tags


@given(lists())
def test_every_list_of_the_grammar_is_parsed(drawn: tuple[list[str], set[str]]) -> None:
    lines, tags = drawn
    assert parse_tags(lines) == tags


@given(st.text(st.sampled_from('"W/, \t*a\x7f\x80"'), max_size=12))
def test_any_text_is_parsed_by_the_grammar_or_refused(value: str) -> None:
    expected = strictly_parsed(value)
    if expected is None:
        with pytest.raises(ValueError, match="entity tags"):
            parse_tags([value])
    else:
        assert parse_tags([value]) == expected


@pytest.mark.parametrize(
    "lines", [["*", "*"], ["*", '"a"'], ['"*" *'], ['w/"a"'], ['W/ "a"'], ["a"], ['"'], ['"a" "b"']]
)
def test_a_malformed_field_is_refused(lines: list[str]) -> None:
    with pytest.raises(ValueError, match="entity tags"):
        parse_tags(lines)


def test_a_quoted_star_is_a_tag() -> None:
    assert parse_tags(['"*"']) == {'"*"'}
    assert parse_tags(["*"]) == {ANY}


WRITES = ("PUT", "PATCH", "DELETE")


class Writer:
    """Sends conditional writes of a new book of an owner."""

    def __init__(self, client: httpx.AsyncClient, owner: Member, book_id: int) -> None:
        self._client, self._owner, self.path = client, owner, f"/api/books/{book_id}"

    async def tag(self) -> str:
        """Return the ETag of the book."""
        return str((await self._client.get(self.path)).headers["ETag"])

    async def send(self, method: str, title: str = "T", **headers: str) -> httpx.Response:
        """Send a write. headers: fields; `_` stands for `-`."""
        given = self._owner.headers | headers
        fields = [
            (name.replace("_", "-").encode(), value.encode("latin-1"))
            for name, value in given.items()
        ]
        body = {"title": title} if method != "DELETE" else None
        return await self._client.request(method, self.path, json=body, headers=fields)


Writers = Callable[[], Awaitable[Writer]]


@pytest.fixture
async def writer(client: httpx.AsyncClient, make: Factory) -> Writer:
    """A writer of a new book."""
    owner = await make.member()
    return Writer(client, owner, (await make.book(owner)).id)


@pytest.fixture
async def writers(client: httpx.AsyncClient, make: Factory) -> Writers:
    """Makes writers, each of a new book of the same owner."""
    owner = await make.member()

    async def new() -> Writer:
        return Writer(client, owner, (await make.book(owner)).id)

    return new


async def test_a_write_with_a_matching_tag_is_done(writers: Writers) -> None:
    forms = ["{}", "*", "W/{}", f"{OTHER}, {{}}", f'"a,b" , ,{OTHER},{{}},', '"é", {}']
    for method, form in product(WRITES, [*forms, "-gzip", "-zstd"]):
        writer = await writers()
        tag = await writer.tag()
        value = f'{tag[:-1]}{form}"' if form.startswith("-") else form.format(tag)
        response = await writer.send(method, If_Match=value)
        assert response.status_code == (204 if method == "DELETE" else 200), value
        if method != "DELETE":
            assert response.headers["ETag"] == await writer.tag() != tag


async def test_a_write_with_another_tag_is_412_with_the_current_tag(writer: Writer) -> None:
    old = await writer.tag()
    await writer.send("PATCH", "Changed")
    tag = await writer.tag()
    values = [old, OTHER, "", ",", 'W/"x"', '"*"', f"{old}, W/{old}", tag.replace('"', '"x', 1)]
    for method, value in product(WRITES, [*values, f'{tag[:-1]}-br"']):
        response = await writer.send(method, "Lost", If_Match=value)
        assert_problem(response, 412, "Precondition Failed")
        assert response.headers["ETag"] == tag
    assert await writer.tag() == tag


async def test_if_none_match_refuses_a_write_of_what_exists(writers: Writers) -> None:
    for method in WRITES:
        writer = await writers()
        tag = await writer.tag()
        for value in ("*", tag, f"W/{tag}", f"{OTHER}, {tag}"):
            response = await writer.send(method, "Lost", If_None_Match=value)
            assert_problem(response, 412, "Precondition Failed")
            assert response.headers["ETag"] == tag == await writer.tag()
        done = await writer.send(method, If_Match=tag, If_None_Match=OTHER)
        assert done.status_code == (204 if method == "DELETE" else 200)


async def test_a_malformed_field_is_400(writer: Writer) -> None:
    tag = await writer.tag()
    for method, name in product(WRITES, ("If-Match", "If-None-Match")):
        for value in ("abc", '*, "a"', '"a" "b"', 'w/"a"', '"'):
            response = await writer.send(method, "Lost", **{name: value})
            assert_problem(response, 400, "Bad Request")
            assert name in response.json()["message"]
    assert await writer.tag() == tag


async def test_several_field_lines_are_one_list(
    site: Site, make: Factory, client: httpx.AsyncClient
) -> None:
    owner = await make.member()
    writer = Writer(client, owner, (await make.book(owner)).id)
    for tags, status in (([OTHER, await writer.tag()], 204), ([OTHER, OTHER], 404)):
        lines = "".join(f"If-Match: {tag}\r\n" for tag in tags)
        head = f"DELETE {writer.path} HTTP/1.1\r\nHost: x\r\n{lines}"
        request = f"{head}Authorization: Bearer {owner.token}\r\n\r\n"
        assert (await send_raw(site, request.encode()))[0] == status


async def test_a_write_without_a_change_keeps_the_tag(writer: Writer) -> None:
    first = await writer.send("PUT", "Same")
    for _ in range(2):
        again = await writer.send("PUT", "Same", If_Match=first.headers["ETag"])
        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["ETag"] == first.headers["ETag"]


async def test_rights_and_existence_come_before_preconditions(
    client: httpx.AsyncClient, make: Factory
) -> None:
    owner, other = await make.member(), await make.member()
    book = await make.book(owner)
    conditions = ({"If_Match": OTHER}, {"If_Match": "*"}, {"If_None_Match": "*"})
    for method, fields in product(WRITES, conditions):
        absent = await Writer(client, owner, book.id + 1).send(method, **fields)
        assert_problem(absent, 404, "Not Found")
        foreign = await Writer(client, other, book.id).send(method, **fields)
        assert_problem(foreign, 403, "Forbidden")
        assert "ETag" not in foreign.headers
        path = f"/api/books/{book.id}"
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        assert (await client.request(method, path, headers=headers)).status_code == 401
    invalid = await client.put(path, json={"title": 1}, headers=owner.headers | {"If-Match": OTHER})
    assert_problem(invalid, 400, "Validation Error")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_one_of_twenty_writers_with_one_tag_wins(writer: Writer, method: str) -> None:
    tag = await writer.tag()
    responses = await asyncio.gather(
        *(writer.send(method, f"Title {number}", If_Match=tag) for number in range(20))
    )
    statuses = Counter(response.status_code for response in responses)
    if method == "DELETE":
        assert statuses == {204: 1, 404: 19}
        return
    assert statuses == {200: 1, 412: 19}
    (winner,) = (response for response in responses if response.status_code == 200)
    assert winner.headers["ETag"] == await writer.tag()
    assert winner.json()["version"] == 2


async def test_the_tag_of_a_sparse_body_does_not_match(
    writer: Writer, client: httpx.AsyncClient
) -> None:
    sparse = await client.get(f"{writer.path}?fields=id,title")
    response = await writer.send("PUT", If_Match=sparse.headers["ETag"])
    assert response.status_code == 412


async def test_if_match_is_required_by_a_setting(make: Factory, site: Site, folder: Path) -> None:
    owner, other = await make.member(), await make.member()
    book = await make.book(owner)
    settings = settings_for(site.another_url, folder, require_if_match=True)
    async with visiting(settings) as client:
        writer = Writer(client, owner, book.id)
        for method in WRITES:
            for fields in ({}, {"If_None_Match": OTHER}):
                response = await writer.send(method, **fields)
                assert_problem(response, 428, "Precondition Required")
            assert (await Writer(client, other, book.id).send(method)).status_code == 403
            assert (await Writer(client, owner, book.id + 1).send(method)).status_code == 404
            assert (await writer.send(method, If_Match=OTHER)).status_code == 412
        assert (await writer.send("PUT", If_Match=await writer.tag())).status_code == 200
        created = await client.post(
            "/api/books", json={"title": "T", "author": "A"}, headers=owner.headers
        )
        assert created.status_code == 201, "only changes need a tag"
        document = (await client.get("/openapi.json")).json()
        (parameter,) = (
            each
            for each in document["paths"]["/api/books/{book_id}"]["put"]["parameters"]
            if each["name"] == "If-Match"
        )
        assert parameter["required"] is True
