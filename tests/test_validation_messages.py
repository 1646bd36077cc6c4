"""The messages about an invalid request: the first mistakes, and the number of the others."""

from typing import Any

import httpx
import pytest

from service.books.schemas import BookQuery
from service.errors import MAX_FIELD_NAME, MAX_FIELDS, InvalidInputError
from service.http.parsing import MAX_PARAMETERS, MAX_VALUES
from service.http.schemas import MAX_MEMBERS
from tests.factories import Factory
from tests.http_client import assert_problem

MAX_BYTES = 8_192
UNKNOWN = ["Unknown field."]
SENTENCE = "The request holds fields that are not valid"
GOOD = {"email": "anna@example.org", "password": "correct horse"}


def unknown(number: int) -> dict[str, int]:
    """Make members that are in no schema."""
    return {f"member {n:02}": n for n in range(number)}


def problem_of(response: httpx.Response) -> dict[str, Any]:
    """Give the body of a response about an invalid request."""
    assert_problem(response, 400, "Validation Error")
    assert len(response.content) <= MAX_BYTES
    body: dict[str, Any] = response.json()
    assert body["errors"] == body["messages"]
    assert body["detail"] == body["message"]
    return body


async def test_a_few_mistakes_are_all_listed(client: httpx.AsyncClient) -> None:
    body = problem_of(await client.post("/api/auth/login", json=GOOD | unknown(MAX_FIELDS)))
    assert body["errors"] == dict.fromkeys(unknown(MAX_FIELDS), UNKNOWN)
    assert body["message"] == SENTENCE


async def test_of_many_mistakes_the_first_are_listed_and_the_rest_are_counted(
    client: httpx.AsyncClient,
) -> None:
    many = unknown(MAX_MEMBERS - 1)
    body = problem_of(await client.post("/api/auth/login", json={"email": 7} | many))
    first = [*many][: MAX_FIELDS - 2]
    missing = ["Missing data for required field."]
    wrong = {"email": ["Not a valid string."], "password": missing}
    assert body["errors"] == wrong | dict.fromkeys(first, UNKNOWN)
    assert body["message"] == f"{SENTENCE}; {len(many) - len(first)} more are not listed"


@pytest.mark.parametrize("path", ["/api/auth/login", "/api/auth/register", "/api/auth/refresh"])
@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (MAX_MEMBERS + 1, f"Holds {MAX_MEMBERS + 1} fields: {MAX_MEMBERS} are the most."),
        (MAX_VALUES + 1, f"Holds {MAX_VALUES + 1} values: {MAX_VALUES} are the most."),
    ],
)
async def test_far_too_many_members_are_refused_as_a_whole(
    client: httpx.AsyncClient, path: str, number: int, sentence: str
) -> None:
    assert problem_of(await client.post(path, json=unknown(number)))["errors"] == {
        "_schema": [sentence]
    }


@pytest.mark.parametrize("letter", ["a", "é", "書", "\x01", '"', "\U0001f4d6"])
async def test_long_names_are_cut(client: httpx.AsyncClient, make: Factory, letter: str) -> None:
    member = await make.member()
    names = [f"{n:02}" + letter * 100 for n in range(MAX_PARAMETERS)]
    short = [f"{name[:MAX_FIELD_NAME]}…" for name in names]
    books = {"title": "T", "author": "A"} | dict.fromkeys(names, 1)
    body = problem_of(await client.post("/api/books", json=books, headers=member.headers))
    listed = len(body["errors"])
    assert 2 < listed <= MAX_FIELDS
    assert body["errors"] == dict.fromkeys(short[:listed], UNKNOWN)
    assert body["message"] == f"{SENTENCE}; {len(names) - listed} more are not listed"
    for path in ("/api/books", "/health"):
        body = problem_of(await client.get(path, params=dict.fromkeys(names[:2], 1)))
        assert body["errors"] == dict.fromkeys(short[:2], UNKNOWN)


async def test_every_parameter_of_a_list_may_be_wrong_and_is_listed(
    client: httpx.AsyncClient,
) -> None:
    names = [*BookQuery.model_fields]
    names.remove("cursor")  # any text may be a cursor
    body = problem_of(await client.get("/api/books", params=dict.fromkeys(names, "")))
    assert set(body["errors"]) == set(names)
    assert body["message"] == SENTENCE


def test_at_least_the_messages_of_a_field_fit_into_a_response() -> None:
    error = InvalidInputError({f"{n:02}" + "\x01" * 500: ["x" * 2_000] for n in range(99)})
    assert len(error.payload["errors"]) == 1
    assert error.message == f"{SENTENCE}; 98 more are not listed"
