"""Compares every response of a served application with the OpenAPI document."""

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cached_property
from typing import Any

from jsonschema_rs import validator_for
from quart import Quart
from werkzeug.exceptions import HTTPException

from service.errors import MIMETYPE
from service.http.compression import MIN_SIZE
from service.limits.middleware import is_path
from service.openapi.pages import document
from service.server.http1.config import EarlyResponse
from tests.codings import decode

# Refusals before a route is known.
REFUSALS = {401: "Unauthorized", 429: "TooManyRequests", 503: "ServiceUnavailable"}
# Headers of HTTP and of the server, which the document does not describe.
UNDOCUMENTED = {
    "content-type", "content-length", "content-encoding", "date", "server", "connection", "allow",
}  # fmt: skip

violations: list[str] = []


def templated(rule: str) -> str:
    """Return a rule of the URL map as a path of the document."""
    parts = [
        "{" + part[1:-1].rpartition(":")[2] + "}" if part.startswith("<") else part
        for part in rule.split("/")
    ]
    return "/".join(parts)


def named(reference: str) -> str:
    """Return the name of the component that a reference leads to."""
    return reference.rpartition("/")[2]


def strict(value: Any) -> Any:
    """Close every object of a schema, so that an undocumented member is an error."""
    if isinstance(value, list):
        return [strict(item) for item in value]
    if not isinstance(value, dict):
        return value
    closed = {key: strict(item) for key, item in value.items()}
    if isinstance(value.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def _coding_errors(scope: Any, status: int, headers: dict[str, str], size: int) -> Iterator[str]:
    """Yield the differences from the rules of compression. size: of the content, in bytes."""
    coding, tag = headers.get("content-encoding"), headers.get("etag")
    accepted = b",".join(v for name, v in scope["headers"] if name == b"accept-encoding").lower()
    if coding is not None and coding.encode() not in accepted and b"*" not in accepted:
        yield f"{coding} is not accepted"
    if coding is not None and size <= MIN_SIZE and "content-length" in headers:
        yield "a short body is compressed"
    if tag is not None and status != 304 and tag.strip('"').partition("-")[2] != (coding or ""):
        yield f"the ETag {tag} of a response with the coding {coding}"
    if "Accept-Encoding" not in headers.get("vary", ""):
        yield "Vary has no Accept-Encoding"


def without_sparse(value: Any) -> Any:
    """Remove the sparse alternatives of each `anyOf` in a schema."""
    if isinstance(value, list):
        return [without_sparse(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_sparse(
            [each for each in item if "/Sparse" not in json.dumps(each)] if key == "anyOf" else item
        )
        for key, item in value.items()
    }


class Watched:
    """An ASGI application that compares its responses with its document."""

    def __init__(self, app: Quart) -> None:
        self._app = app
        self._inner = app.asgi_app
        self._validators: dict[tuple[str, bool], Any] = {}
        self._shortcut: Any = app.extensions.get("fast_path")

    @cached_property
    def document(self) -> dict[str, Any]:
        """The document, with its objects closed."""
        schema: dict[str, Any] = strict(json.loads(document(self._app).as_bytes))
        return schema

    @cached_property
    def whole_document(self) -> dict[str, Any]:
        """The document without the schemas of sparse representations."""
        schema: dict[str, Any] = without_sparse(self.document)
        return schema

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request through, and check its response."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        start: Any = None
        body = b""

        async def watching(message: Any) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    self._check(scope, start, body)
            await send(message)

        await self._inner(scope, receive, watching)

    def lookup(self, scope: Any, callback: Any) -> bool:
        """Pass on a request that needs no application, and check its response."""

        def checking(response: EarlyResponse | None) -> None:
            if response is not None:
                start = {"status": response.status, "headers": response.headers}
                self._check(scope, start, response.body)
            callback(response)

        return self._shortcut is not None and self._shortcut.lookup(scope, checking)

    def _check(self, scope: Any, start: Any, body: bytes) -> None:
        names = [key.decode().lower() for key, _ in start["headers"]]
        headers = {key.decode().lower(): value.decode() for key, value in start["headers"]}
        request = f"{scope['method']} {scope['path']}: {start['status']}"
        content = decode(headers, body)
        errors = list(self._differences(scope, start["status"], headers, content))
        errors += _coding_errors(scope, start["status"], headers, len(content))
        errors += [f"{name} twice" for name in set(names) if names.count(name) > 1]
        violations.extend(f"{request}: {error}" for error in errors)

    def _differences(self, scope: Any, status: int, headers: dict[str, str], body: bytes) -> Any:
        method = scope["method"].lower()
        is_sparse = b"fields=" in scope["query_string"]
        source = self.document if is_sparse else self.whole_document
        described = self._described(source, scope, method, status, headers)
        if described is None:
            yield "not in the document"
            return
        is_cacheable = method in {"get", "head"} and (
            status == 304 or (status == 200 and "etag" in headers)
        )
        if headers.get("cache-control") != ("no-cache" if is_cacheable else "no-store"):
            yield "another Cache-Control"
        if status == 405 and "allow" not in headers:
            yield "no Allow"
        components = source["components"]
        for name, header in described["headers"].items():
            reference = header.get("$ref")
            schema = header if reference is None else components["headers"][named(reference)]
            value = headers.get(name.lower())
            if value is None:
                if schema["required"]:
                    yield f"no {name}"
                continue
            parsed = int(value) if schema["schema"].get("type") == "integer" else value
            yield from self._errors(source, json.dumps(schema["schema"]), parsed)
        known = UNDOCUMENTED | {name.lower() for name in described["headers"]}
        for name in headers:
            if name not in known and not name.startswith("access-control-"):
                yield f"{name} is not described"
        content = described.get("content", {})
        media = headers.get("content-type", "").partition(";")[0]
        if not content:
            if body and method != "head":  # the server drops it
                yield "an undocumented body"
            return
        kind = next((kind for kind in content if fnmatch(media, kind.partition(";")[0])), None)
        if kind is None:
            yield f"{media} is not described"
        elif media == "application/x-ndjson" or "content-encoding" in headers:
            pass  # a stream, which OpenAPI 3.1 describes as a string
        elif media.endswith("json") and method != "head":
            parsed = json.loads(body)
            yield from self._errors(source, json.dumps(content[kind]["schema"]), parsed)
            if kind == MIMETYPE and [parsed["status"], parsed["request_id"]] != [
                status,
                headers["x-request-id"],
            ]:
                yield "status or id of the body differ"

    def _described(
        self, source: Any, scope: Any, method: str, status: int, headers: dict[str, str]
    ) -> Any:
        """Return the description of a response in the document, or None."""
        shared = source["components"]["responses"]
        bare = {"headers": shared["NotFound"]["headers"]}
        path = scope["path"] if is_path(scope["raw_path"]) else "no path"
        try:
            rule, _ = self._app.url_map.bind("").match(path, method.upper(), return_rule=True)
        except HTTPException as error:
            if status == 302 and error.code == 404:
                moved = bare["headers"] | {"Location": {"$ref": "/Location"}}
                return {"headers": moved, "content": {"text/html": {}}}
            if status in REFUSALS:
                return shared[REFUSALS[status]]
            return shared["NotFound"] if status in {error.code, 413} else None
        if method == "options":
            return bare if status == 200 else None
        operation = source["paths"][templated(rule.rule)].get(method)
        if operation is None:
            return None
        response = operation["responses"].get(str(status))
        if response is not None and "$ref" in response:
            return shared[named(response["$ref"])]
        return response

    def _errors(self, source: Any, schema: str, value: Any) -> Any:
        key = schema, source is self.document
        if key not in self._validators:
            whole = json.loads(schema) | {"components": source["components"]}
            self._validators[key] = validator_for(whole, validate_formats=True)
        for error in self._validators[key].iter_errors(value):
            yield f"{error.message} at {'/'.join(map(str, error.instance_path))}"
