"""What the document cannot say, so that a request may fit it and still be refused.

Loaded by schemathesis.
"""

import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import requests
import schemathesis
from hypothesis import strategies
from schemathesis.generation.meta import TestPhase
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance


def whatever(value: Any) -> bool:
    """Excuse the refusal of any value."""
    return True


def padded(value: Any) -> bool:
    """Excuse that of a text with blanks at its ends, which do not count."""
    return isinstance(value, str) and value != value.strip()


def blank(value: Any) -> bool:
    """Excuse that of a text that shows nothing, though it is longer than nothing."""
    return isinstance(value, str) and bool(value)


def address(value: Any) -> bool:
    """Excuse that of what looks like an address, but goes nowhere."""
    return isinstance(value, str) and "@" in value


def cents(value: Any) -> bool:
    """Excuse that of a price with more than two decimals."""
    return bool(value != round(value, 2))


# Refusals that depend on several parameters at once, on what is in the database, or on what a
# character looks like: by operation, the field that is refused, why, and of what values.
Unsaid = dict[tuple[str, str], Callable[[Any], bool]]
BLANK = "Field may not be blank."
SHORT = "Shorter than minimum length {}."
DEEP = "Too deep: a page may skip 100000 rows."
DEEPER = "Beyond 100000 rows use cursor mode: limit instead of page and per_page."
BOOK: Unsaid = {
    ("title", BLANK): blank,
    ("author", BLANK): blank,
    ("title", SHORT.format(1)): padded,
    ("author", SHORT.format(1)): padded,
    ("price", "Must have at most 2 decimal places."): cents,
}
ACCOUNT: Unsaid = {
    ("username", "Must not hold control or invisible characters."): whatever,
    ("username", SHORT.format(3)): padded,
    ("username", "Username already exists"): whatever,
    ("email", "Not a valid email address."): address,
    ("email", "Email already registered"): whatever,
}
UNSAID: dict[str, Unsaid] = {
    "GET /api/books": {
        ("_schema", "Give page and per_page, or cursor and limit, not both."): whatever,
        (
            "page",
            "Beyond 100000 rows use cursor mode: limit instead of page and per_page.",
        ): whatever,
        ("cursor", "Not a cursor of this list."): whatever,
        ("q", "Must hold a letter or a digit."): whatever,
        ("author", BLANK): blank,
        ("author", SHORT.format(1)): padded,
    },
    "GET /api/users/{user_id}/books": {("page", DEEP): whatever},
    "GET /admin/users": {("page", DEEP): whatever},
    "POST /api/books": BOOK,
    "PUT /api/books/{book_id}": BOOK,
    "PATCH /api/books/{book_id}": BOOK,
    "POST /api/auth/register": ACCOUNT,
    "PATCH /api/profile": ACCOUNT
    | {
        ("current_password", "Missing data for required field."): whatever,  # for a new one
        ("current_password", "Current password is wrong"): whatever,
    },
}
ANYWHERE = {
    "The body holds a NUL character or a lone surrogate",
    "The query holds a NUL character",
    "The body holds a number out of range",  # a price of 1e-308
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
    _calls[label] += 1
    number = _calls[label]
    if label in ("GET /api/books", "HEAD /api/books") and case.query:
        tried = getattr(case.meta.phase.data, "parameter", None)
        kept = next((mode for mode in MODES if tried in mode), MODES[number % 2])
        others = set().union(*MODES) - kept
        case.query = {name: value for name, value in case.query.items() if name not in others}
    if number % 4 == 0:
        return
    if label == "POST /api/auth/register":
        name = f"reader-{os.getpid()}-{number}"
        for field, fits, value in (
            ("username", r"\s*\S.{1,48}\S\s*", name),
            ("email", ".*@.*", f"{name}@example.org"),
        ):
            if re.fullmatch(fits, str(case.body.get(field))):
                case.body[field] = value
    if case.meta.phase.name in (TestPhase.EXAMPLES, TestPhase.COVERAGE):
        return  # which try each bound of the document by itself
    if label == "PATCH /api/profile":
        case.body = {"username": f"renamed-{os.getpid()}-{number}"}
    elif label == "POST /api/auth/login":
        case.body = CREDENTIALS
    elif label == "POST /api/auth/refresh":
        url = f"{case.operation.base_url.rstrip('/')}/api/auth/login"
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
        if body["message"] in ANYWHERE or _is_unsaid(case, body.get("messages", {})):
            return None
    return positive_data_acceptance(ctx, response, case)


@schemathesis.check
def what_does_not_fit_is_refused(ctx: Any, response: Any, case: Any) -> bool | None:
    """Let nothing through that does not fit, but for texts that do without blanks at their ends."""
    if any(map(padded, _given(case).values())):
        return None
    return negative_data_rejection(ctx, response, case)


def _given(case: Any) -> dict[str, Any]:
    return {**(case.query or {}), **(case.body if isinstance(case.body, dict) else {})}


def _is_unsaid(case: Any, messages: dict[str, list[str]]) -> bool:
    unsaid = UNSAID.get(case.operation.label.replace("HEAD ", "GET "), {})
    given = _given(case)
    found = [(field, why) for field, sentences in messages.items() for why in sentences]
    return bool(found) and all(one in unsaid and unsaid[one](given.get(one[0])) for one in found)
