"""What the document cannot say, so that a request may fit it and still be refused.

Loaded by schemathesis.
"""

import os
from collections import Counter
from typing import Any

import requests
import schemathesis
from hypothesis import strategies
from schemathesis.generation.meta import TestPhase
from schemathesis.specs.openapi.checks import positive_data_acceptance

# Refusals that depend on several parameters at once, on what is in the database, or on what a
# character looks like: by operation, the field that is refused, and why.
BLANK = "Field may not be blank."
SHORT = "Shorter than minimum length {}."  # once blanks at its ends are gone
TOO_DEEP = "Too deep: a page may skip 100000 rows."
BOOK = {(field, why) for field in ("title", "author") for why in (BLANK, SHORT.format(1))} | {
    ("price", "Must have at most 2 decimal places.")
}
ACCOUNT = {
    ("username", "Must not hold control or invisible characters."),
    ("username", SHORT.format(3)),
    ("username", "Username already exists"),
    ("email", "Not a valid email address."),
    ("email", "Email already registered"),
}
UNSAID = {
    "GET /api/books": {
        ("_schema", "Give page and per_page, or cursor and limit, not both."),
        ("page", "Beyond 100000 rows use cursor mode: limit instead of page and per_page."),
        ("cursor", "Not a cursor of this list."),
        ("q", "Must hold a letter or a digit."),
    },
    "GET /api/users/{user_id}/books": {("page", TOO_DEEP)},
    "GET /admin/users": {("page", TOO_DEEP)},
    "POST /api/books": BOOK,
    "PUT /api/books/{book_id}": BOOK,
    "PATCH /api/books/{book_id}": BOOK,
    "POST /api/auth/register": ACCOUNT,
    "PATCH /api/profile": ACCOUNT
    | {
        ("current_password", "Missing data for required field."),  # for a new one
        ("current_password", "Current password is wrong"),
    },
}
ANYWHERE = {
    "The body holds a NUL character or a lone surrogate",
    "The query holds a NUL character",
}

USER = int(os.environ["FUZZ_USER"])
CREDENTIALS = {"email": os.environ["FUZZ_EMAIL"], "password": os.environ["FUZZ_PASSWORD"]}
# What the message itself hangs on: made up, it is no HTTP, and the server refuses it by itself.
FRAMING = {"content-length", "transfer-encoding", "host", "expect", "upgrade", "connection"}
MODES = ({"page", "per_page"}, {"cursor", "limit"})
_calls: Counter[str] = Counter()


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Let most requests through to what is behind the refusals above.

    Names that are made up are taken or unknown, and parameters of both modes together. And keep
    the one who asks: an administrator may delete themselves, if they made another one.
    """
    label = case.operation.label
    for name in FRAMING.intersection(name.lower() for name in case.headers or ()):
        del case.headers[name]
    if "/admin/users/" in label and str(case.path_parameters.get("user_id")) == str(USER):
        case.path_parameters["user_id"] = USER + 1
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.meta.phase.name in (TestPhase.EXAMPLES, TestPhase.COVERAGE):
        return  # which try each bound of the document by itself
    _calls[label] += 1
    number = _calls[label]
    if number % 4 == 0:
        return
    if case.path == "/api/books" and case.query:
        other_mode = MODES[number % 2]
        case.query = {name: value for name, value in case.query.items() if name not in other_mode}
    elif label == "POST /api/auth/register":
        name = f"reader-{os.getpid()}-{number}"
        case.body = CREDENTIALS | {"username": name, "email": f"{name}@example.org"}
    elif label == "PATCH /api/profile":
        case.body = {"username": f"renamed-{os.getpid()}-{number}"}
    elif label == "POST /api/auth/login":
        case.body = CREDENTIALS
    elif label == "POST /api/auth/refresh":
        url = f"{case.operation.base_url}/api/auth/login"
        pair = requests.post(url, json=CREDENTIALS, timeout=9).json()
        case.body = {"refresh_token": pair["refresh_token"]}


@schemathesis.hook
def flatmap_body(context: Any, body: Any) -> Any:
    """Put half a surrogate pair into one body in twenty, which schemathesis itself cannot."""
    members = body.items() if isinstance(body, dict) else ()
    texts = [name for name, value in members if isinstance(value, str)]
    if not texts:
        return strategies.just(body)
    torn = strategies.sampled_from(texts).map(lambda name: body | {name: f"{body[name]}\ud83d"})
    return strategies.integers(1, 20).flatmap(
        lambda number: torn if number == 20 else strategies.just(body)
    )


@schemathesis.check
def what_fits_is_accepted(ctx: Any, response: Any, case: Any) -> bool | None:
    """Let nothing that fits the document be refused, but for the reasons above."""
    if response.status_code == 400:
        if not response.content:  # to HEAD; GET, which is asked the same, says why
            return None
        body = response.json()
        messages = body.get("messages", {})
        found = {(field, why) for field, sentences in messages.items() for why in sentences}
        if found <= UNSAID.get(case.operation.label.replace("HEAD ", "GET "), set()) and (
            found or body["message"] in ANYWHERE
        ):
            return None
    return positive_data_acceptance(ctx, response, case)
