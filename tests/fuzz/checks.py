"""Rules that the OpenAPI document cannot express: a request may fit it and still be refused.

schemathesis loads this module.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import requests
import schemathesis
from hypothesis import strategies
from schemathesis.generation.meta import TestPhase
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance


def any_value(value: Any) -> bool:
    """Any value may be refused."""
    return True


def padded(value: Any) -> bool:
    """A text with blanks at its ends may be refused: these do not count."""
    return isinstance(value, str) and value != value.strip()


def blank(value: Any) -> bool:
    """A text that is not empty may be refused: it may show nothing."""
    return isinstance(value, str) and bool(value)


def address(value: Any) -> bool:
    """A text with the form of an address may be refused: its domain may not exist."""
    return isinstance(value, str) and "@" in value


def cents(value: Any) -> bool:
    """A price with more than two decimals may be refused."""
    return bool(value != round(value, 2))


# Refusals that depend on several parameters, on rows in the database, or on the look of a
# character. For each operation: the field, the message, and the values that may be refused.
Refusals = dict[tuple[str, str], Callable[[Any], bool]]
BLANK = "Field may not be blank."
SHORT = "Shorter than minimum length {}."
DEEP = "Too deep: a page may skip 100000 rows."
DEEPER = "Beyond 100000 rows use cursor mode: limit instead of page and per_page."
BOOK: Refusals = {
    ("title", BLANK): blank,
    ("author", BLANK): blank,
    ("title", SHORT.format(1)): padded,
    ("author", SHORT.format(1)): padded,
    ("price", "Must have at most 2 decimal places."): cents,
}
ACCOUNT: Refusals = {
    ("username", "Must not hold control or invisible characters."): any_value,
    ("username", SHORT.format(3)): padded,
    ("username", "Username already exists"): any_value,
    ("email", "Not a valid email address."): address,
    ("email", "Email already registered"): any_value,
}
UNDOCUMENTED: dict[str, Refusals] = {
    "GET /api/books": {
        ("_schema", "Give page and per_page, or cursor and limit, not both."): any_value,
        (
            "page",
            "Beyond 100000 rows use cursor mode: limit instead of page and per_page.",
        ): any_value,
        ("cursor", "Not a cursor of this list."): any_value,
        ("q", "Must hold a letter or a digit."): any_value,
        ("author", BLANK): blank,
        ("author", SHORT.format(1)): padded,
    },
    "GET /api/search": {
        ("page", DEEP): any_value,
        ("q", "Must hold a letter or a digit."): any_value,
    },
    "GET /api/users/{user_id}/books": {("page", DEEP): any_value},
    "GET /admin/users": {("page", DEEP): any_value},
    "POST /api/books": BOOK,
    "PUT /api/books/{book_id}": BOOK,
    "PATCH /api/books/{book_id}": BOOK,
    "POST /api/auth/register": ACCOUNT,
    "PATCH /api/profile": ACCOUNT
    | {
        (
            "current_password",
            "Missing data for required field.",
        ): any_value,  # of a new password or address
        ("current_password", "Current password is wrong"): any_value,
    },
}
ANYWHERE = {
    "The body holds a NUL character or a lone surrogate",
    "The query holds a NUL character",
    "The body holds a number out of range",  # a price of 1e-308
}

USER = int(os.environ["FUZZ_USER"])
CREDENTIALS = {"email": os.environ["FUZZ_EMAIL"], "password": os.environ["FUZZ_PASSWORD"]}
# Headers that frame a message: with random values it is not HTTP, and the server refuses it.
FRAMING = {"content-length", "transfer-encoding", "host", "expect", "upgrade", "connection"}
KEY = "Idempotency-Key"
MODES = ({"page", "per_page"}, {"cursor", "limit"})
_calls: Counter[str] = Counter()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Change most requests so that they pass the refusals above.

    Random names are taken or unknown, and parameters of both list modes come together. The user
    who sends the requests is kept: an administrator may delete their own account if there is
    another administrator.
    """
    label = case.operation.label
    for name in FRAMING.intersection(name.lower() for name in case.headers or ()):
        del case.headers[name]
    if "/admin/users/" in label and str(case.path_parameters.get("user_id")) == str(USER):
        case.path_parameters["user_id"] = USER + 1
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    _calls[label] += 1
    number = _calls[label]
    if KEY in (case.headers or {}):  # else it belongs to an earlier request
        path = label.partition("/")[2]
        case.headers[KEY] = f"{case.headers[KEY][:150]}-{path}-{os.getpid()}-{number}"
    if label in ("GET /api/books", "HEAD /api/books") and case.query:
        tried = getattr(case.meta.phase.data, "parameter", None)
        kept = next((mode for mode in MODES if tried in mode), MODES[number % 2])
        others = set().union(*MODES) - kept
        case.query = {name: value for name, value in case.query.items() if name not in others}
    if number % 4 == 0:
        return
    if label in ("GET /api/search", "HEAD /api/search") and case.query.get("q"):
        case.query["q"] = f"{case.query['q'][:150]} book"  # else most searches have no word
    if label == "POST /api/auth/register":
        name = f"reader-{os.getpid()}-{number}"
        for field, fits, value in (
            ("username", r"\s*\S.{1,48}\S\s*", name),
            ("email", ".*@.*", f"{name}@example.org"),
        ):
            if re.fullmatch(fits, str(case.body.get(field))):
                case.body[field] = value
    if case.meta.phase.name in (TestPhase.EXAMPLES, TestPhase.COVERAGE):
        return  # these phases try each bound of the document
    if label == "PATCH /api/profile":
        case.body = {"username": f"renamed-{os.getpid()}-{number}"}
    elif label == "POST /api/auth/login":
        case.body = CREDENTIALS
    elif label == "POST /api/auth/refresh":
        url = f"{case.operation.base_url.rstrip('/')}/api/auth/login"
        pair = requests.post(url, json=CREDENTIALS, timeout=60).json()
        case.body = {"refresh_token": pair["refresh_token"]}


@schemathesis.hook
def flatmap_body(context: Any, body: Any) -> Any:
    """Put half a surrogate pair into 5 % of the bodies: schemathesis itself never does."""
    members = body.items() if isinstance(body, dict) else ()
    texts = [name for name, value in members if isinstance(value, str)]
    if not texts:
        return strategies.just(body)
    torn = strategies.sampled_from(texts).map(lambda name: body | {name: f"{body[name]}\ud83d"})
    return strategies.integers(1, 20).flatmap(
        lambda number: torn if number == 20 else strategies.just(body)
    )


@schemathesis.check
def valid_requests_are_accepted(ctx: Any, response: Any, case: Any) -> bool | None:
    """Fail if a request that fits the document is refused, except for the reasons above."""
    if response.status_code == 412:  # the tag is that of no book
        return None
    if response.status_code == 400:
        if not response.content:  # a response to HEAD; the same GET has the reason
            return None
        body = response.json()
        if body["message"] in ANYWHERE or _is_undocumented(case, body.get("messages", {})):
            return None
    return positive_data_acceptance(ctx, response, case)


@schemathesis.check
def invalid_requests_are_refused(ctx: Any, response: Any, case: Any) -> bool | None:
    """Fail if an invalid request is accepted, except for texts with blanks at their ends."""
    texts = (*_given(case).values(), *(case.headers or {}).values(), *_texts(case))
    if any(map(padded, texts)) or response.status_code == 412:
        return None
    results = response.json()["results"] if response.status_code == 207 else ()
    if any(result["status"] >= 400 for result in results):
        return None
    return negative_data_rejection(ctx, response, case)


def _given(case: Any) -> dict[str, Any]:
    return {**(case.query or {}), **(case.body if isinstance(case.body, dict) else {})}


def _texts(case: Any) -> Iterator[Any]:
    """Give the values of all items of a bulk request."""
    items = case.body.get("items") if isinstance(case.body, dict) else None
    for item in items if isinstance(items, list) else ():
        yield from item.values() if isinstance(item, dict) else ()


def _is_undocumented(case: Any, messages: dict[str, list[str]]) -> bool:
    refusals = UNDOCUMENTED.get(case.operation.label.replace("HEAD ", "GET "), {})
    given = _given(case)
    errors = [(field, sentence) for field, sentences in messages.items() for sentence in sentences]
    return bool(errors) and all(
        (error in refusals and refusals[error](given.get(error[0])))
        or error[0].startswith("items.")  # of an atomic request
        for error in errors
    )
