"""Valid requests for every operation of the OpenAPI document, made from its examples."""

import json
from collections.abc import Iterator
from itertools import count
from typing import Any
from urllib.parse import urlencode

from quart import Quart

from service.openapi.pages import document
from tests.conformance import templated
from tests.factories import PASSWORD, Factory
from tests.fuzz.cost import METRICS_TOKEN
from tests.fuzz.shapes import Case, Operation

FRAMEWORK = (b"Content-Encoding", b"identity")  # keeps a request off the fast path
_numbers = count(1)


def operations(app: Quart) -> Iterator[Operation]:
    """Give every method of every route, as the OpenAPI document describes it."""
    schema = json.loads(document(app).as_bytes)
    models = schema["components"]["schemas"]
    for rule in app.url_map.iter_rules():
        path = templated(rule.rule)
        described = schema["paths"][path]
        for method in sorted(rule.methods or ()):
            operation = described.get(method.lower(), {})
            parameters = described["get"]["parameters"] if "get" in described else []
            parameters = operation.get("parameters", parameters)
            names = {
                place: [parameter for parameter in parameters if parameter["in"] == place]
                for place in ("path", "query")
            }
            required = {
                parameter["name"]: parameter["schema"]["examples"][0]
                for parameter in names["query"]
                if parameter.get("required")
            }
            # A path may allow some values only.
            values = {each["name"]: each["schema"].get("enum", [1])[0] for each in names["path"]}
            body = operation.get("requestBody")
            example = None
            if body is not None:
                reference = body["content"]["application/json"]["schema"]["$ref"]
                example = models[reference.rpartition("/")[2]]["examples"][0]
            yield Operation(
                method,
                rule.rule,
                path,
                {"book_id": 1, "user_id": 1} | values,
                tuple(parameter["name"] for parameter in names["query"]),
                example,
                is_secured="security" in operation,
                required=urlencode(required),
            )


async def good(make: Factory, operation: Operation) -> Case:
    """Make the rows that a request needs, and a request that succeeds once."""
    admin, member = await make.admin(), await make.member()
    book = await make.book(admin)
    values = operation.values | {"book_id": book.id, "user_id": member.id}
    path, query = operation.template.format(**values), operation.required
    case = Case(operation, f"{path}?{query}".encode() if query else path.encode())
    token = METRICS_TOKEN if operation.rule == "/metrics" else admin.token
    if operation.is_secured or operation.rule == "/metrics":
        case.headers.append((b"Authorization", b"Bearer " + token.encode()))
    case.headers.append(FRAMEWORK)
    if operation.example is not None:
        case.body = json.dumps(_fresh(operation.example, admin, book.id)).encode()
    return case


def _fresh(example: dict[str, Any], user: Any, book_id: int) -> dict[str, Any]:
    """Fill an example with a new name, with the user's credentials, and with the id of a book."""
    name = f"somebody{next(_numbers)}"
    is_new = "username" in example
    own = {
        "username": name,
        "email": f"{name}@example.org" if is_new else user.email,
        "password": PASSWORD,
        "refresh_token": user.refresh_token,
        "ids": [book_id],
        "items": [
            {**item, "id": book_id} if "id" in item else item for item in example.get("items", ())
        ],
    }
    return {**example, **{key: value for key, value in own.items() if key in example}}


def padded(case: Case, other: Case) -> bytes:
    """Pad a request to the size of another request, in its head and in its body."""
    if case.body is not None and other.body is not None:
        case.body += b" " * (len(other.body) - len(case.body))
        case.chunk = other.chunk
    room = len(other.as_bytes()) - len(case.as_bytes()) - len("X-Padding: \r\n")
    if room > 0:
        case.headers.append((b"X-Padding", b"x" * room))
    return case.as_bytes()
