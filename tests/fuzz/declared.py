"""Random requests for every operation, made from its declarations. Most of them are valid."""

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quart import Quart

from service.http.operations import operation_of
from service.openapi.pages import document
from tests.conformance import templated
from tests.factories import PASSWORD, Member

SHOP, ELSEWHERE = "https://shop.example.org", "https://elsewhere.example.org"
MAX_BYTES = 8_192  # of a body that is allowed
BAD_VALUES = ["", " ", "?!", "\u200b", 1, -1, 1.5, 1e400, 10**30, True, None, [], {}, "x" * 3_000]
TEXTS = [" Emma ", "Ünï – 書", 'a\\b"c\n', "7"]
BAD_ARGS = ["", "0", "-1", "x", "1.5", "9" * 20, "%ff", "a%00", "%20", "007"]
BAD_IDS = ["0", "007", "1x", "9" * 18, "9" * 19, "9" * 25, "%31", "-1", "1000000"]
HOSTS = ["localhost", "a.example:8080", "a.example:80", "a.example:99999", "[::1]:80", "a_b", "a b"]
HOSTS += ["é", "a..b", ".", "a.", "x" * 64, f"{'x' * 63}.a"]
MEDIA_TYPES = ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json ", "json"]
MEDIA_TYPES += ["application/vnd.api+json", "text/plain", "application/json,text/plain", ""]
RARE = [("Accept", "text/html"), ("Content-Length", "0"), ("Cookie", "session=x")]
RARE += [("Range", "bytes=0-3"), ("Expect", "100-continue"), ("Upgrade", "websocket")]
RARE += [("Content-Encoding", "gzip"), ("Content-Encoding", "identity"), ("TE", "trailers")]
CODINGS = ["gzip", "zstd", "gzip, deflate, br, zstd", "gzip;q=0.5, zstd;q=0.2", "identity", "*"]
CODINGS += ["gzip;q=0", "*;q=0", "x-gzip", "GZIP ; Q=1", "gzip;q=2", "br", "", ","]
RARE += [("Idempotency-Key", key) for key in ("first", "second", "no key", "")]
ODD_PATHS = ["/api//books", "/api/books/", "/api%2Fbooks", "/API/books", "/api/books/1/", "/api/x"]
CHANGES = {"PUT", "PATCH", "DELETE"}
REFRESH_TOKEN, ETAG = "@refresh@", "@etag@"  # each server has its own


@dataclass(frozen=True)
class Declared:
    """An operation, as the document describes it.

    query: good values of each parameter. example: a good body. fields: good values of its fields.
    """

    endpoint: str
    method: str
    path: str
    query: dict[str, list[str]]
    example: dict[str, Any] | None
    fields: dict[str, list[Any]]
    is_secured: bool


@dataclass(frozen=True)
class Request:
    """A request without its sender. credentials: "", "own", "false" or "two" (tokens)."""

    declared: Declared
    method: str
    target: str
    headers: list[tuple[str, str]]
    credentials: str
    body: bytes

    def encode(self, address: str, member: Member, tag: str) -> bytes:
        """Give the bytes that a member sends from an address. tag: an ETag of a response."""
        body = self.body.replace(REFRESH_TOKEN.encode(), member.refresh_token.encode())
        token = member.token
        tokens = {"": [], "own": [token], "false": [f"{token}x"], "two": [token, token]}
        lines = [f"{self.method} {self.target} HTTP/1.1"]
        lines += [f"{name}: {value.replace(ETAG, tag)}" for name, value in self.headers]
        lines += [f"Authorization: Bearer {token}" for token in tokens[self.credentials]]
        if body or self.declared.example is not None:
            lines.append(f"Content-Length: {len(body)}")
        lines += [f"X-Forwarded-For: {address}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1") + body


def declarations(app: Quart) -> Iterator[Declared]:
    """Read the declarations of an application's operations."""
    schema = json.loads(document(app).as_bytes)
    models = schema["components"]["schemas"]
    for rule in app.url_map.iter_rules():
        if operation_of(app, rule.endpoint) is None:
            continue
        path = templated(rule.rule)
        for method, described in schema["paths"][path].items():
            if method == "head" or method.upper() not in (rule.methods or ()):
                continue
            parameters = described.get("parameters", ())
            query = {
                parameter["name"]: [_text(value) for value in _good(parameter["schema"], models)]
                for parameter in parameters
                if parameter["in"] == "query"
            }
            example, fields = None, {}
            if "requestBody" in described:
                model = _resolve(
                    described["requestBody"]["content"]["application/json"]["schema"], models
                )
                example = model["examples"][0]
                fields = {name: _good(each, models) for name, each in model["properties"].items()}
            yield Declared(
                rule.endpoint,
                method.upper(),
                path,
                query,
                example,
                fields,
                is_secured="security" in described,
            )


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _resolve(schema: Mapping[str, Any], models: Mapping[str, Any]) -> Any:
    reference = schema.get("$ref")
    return schema if reference is None else models[reference.rpartition("/")[2]]


def _good(schema: Mapping[str, Any], models: Mapping[str, Any]) -> list[Any]:
    """Give values that a schema allows: its examples, enumerated values and bounds."""
    schema = _resolve(schema, models)
    if "anyOf" in schema:
        return [value for each in schema["anyOf"] for value in _good(each, models)]
    values = [*schema.get("enum", ()), *schema.get("examples", ())]
    values += [schema[bound] for bound in ("default", "minimum", "maximum") if bound in schema]
    if schema.get("type") == "null":
        return [None]
    if schema.get("type") == "string" and not values and "pattern" not in schema:
        return [*TEXTS, "x" * schema.get("maxLength", 10)]
    return values


class Requests:
    """Makes random requests."""

    def __init__(self, chance: random.Random, app: Quart) -> None:
        self.declared = list(declarations(app))
        self.ids: dict[str, list[int]] = {}  # of existing rows, by the variable of a path
        self._created: list[str] = []  # the latest paths of created rows
        self.member: Member  # the sender of the next request
        self._chance = chance
        self._names = 0

    def _often(self, probability: float) -> bool:
        return self._chance.random() < probability

    def created(self, request: Request, row_id: int) -> None:
        """Remember the path of a created row, for later requests."""
        self._created = [*self._created, f"{request.target.partition('?')[0]}/{row_id}"][-12:]

    def make(self) -> Request:
        """Make a request for a random operation."""
        choice = self._chance.choice
        declared = choice(self.declared)
        method = declared.method
        if self._often(0.08):
            method = choice(["OPTIONS", "HEAD", "POST", "PUT", "GET"])
        target = self._target(declared)
        body = b"" if declared.example is None else self._body(declared)
        if declared.example is None and self._often(0.03):
            body = b"x" * choice((1, MAX_BYTES, MAX_BYTES + 1))
        credentials = self._chance.choices(("", "own", "false", "two"), (4, 20, 1, 1))[0]
        headers = [*self._headers(declared, body)]
        return Request(declared, method, target, headers, credentials, body)

    def _target(self, declared: Declared) -> str:
        choice = self._chance.choice
        if self._often(0.03):
            return choice(ODD_PATHS)
        pattern = re.compile(re.sub("{.*?}", "[0-9]+", declared.path))
        created = [path for path in self._created if pattern.fullmatch(path)]
        path = choice(created) if created and self._often(0.8) else self.path(declared)
        args = [
            f"{name}={self._arg(values)}"
            for name, values in declared.query.items()
            if self._often(1.5 / len(declared.query))
        ]
        if self._often(0.05):
            args.append(choice(["x=1", "", "=", *args]))
        return f"{path}?{'&'.join(args)}" if args or self._often(0.03) else path

    def path(self, declared: Declared) -> str:
        """Make a path for an operation."""
        parts = [
            self._id(part[1:-1]) if part.startswith("{") else part
            for part in declared.path.split("/")
        ]
        return "/".join(parts)

    def _id(self, name: str) -> str:
        if self._often(0.15):
            return self._chance.choice(BAD_IDS)
        return str(self._chance.choice(self.ids.get(name, range(1, 8))))

    def _arg(self, values: list[str]) -> str:
        choice = self._chance.choice
        text = choice(BAD_ARGS) if self._often(0.1) or not values else choice(values)
        return text.replace(" ", "+").encode().decode("latin-1").replace("+", "%20")

    def good(self, declared: Declared) -> dict[str, Any]:
        """Make the body of a request that succeeds: the example, with the member's credentials."""
        self._names += 1
        name = f"reader{self._names}"
        own = {
            "username": name,
            "email": self._chance.choice([f"{name}@example.org", self.member.email]),
            "password": PASSWORD,
            "current_password": PASSWORD,
            "refresh_token": REFRESH_TOKEN,
        }
        example = declared.example or {}
        return {**example, **{key: value for key, value in own.items() if key in example}}

    def _body(self, declared: Declared) -> bytes:
        choice, values = self._chance.choice, self.good(declared)
        for key, good in declared.fields.items():
            if good and values.get(key) == (declared.example or {}).get(key) and self._often(0.3):
                values[key] = choice(good)
        if self._often(0.15):
            values[choice([*declared.fields, "owner"])] = choice(BAD_VALUES)
        if values and self._often(0.05):
            del values[choice([*values])]
        body = json.dumps(values, ensure_ascii=self._often(0.5)).encode()
        return self._damaged(body) if self._often(0.12) else body

    def _damaged(self, body: bytes) -> bytes:
        return self._chance.choice([
            b"", b"{}", b"[]", b"null", body[:-1], body + b" ", b" " + body, body + b"x",
            body[:-1] + b',"title":"B"}', body[:-1] + b',"price":NaN}', b"\xff" + body,
            body.replace(b"e", b"\xe9"), body.replace(b"e", b"\\u0000"),
            body.replace(b"e", b"\\ud800"), body + b" " * MAX_BYTES,
            body[:-1] + b" " * (MAX_BYTES - len(body)) + b"}", b"[" * 100,
            b'{"title":' * 50, b"\xef\xbb\xbf" + body,
        ])  # fmt: skip

    def _headers(self, declared: Declared, body: bytes) -> Iterator[tuple[str, str]]:
        choice, often = self._chance.choice, self._often
        yield "Host", choice(HOSTS) if often(0.1) else "books.example.org"
        if declared.example is not None and often(0.97):
            yield "Content-Type", choice(MEDIA_TYPES) if often(0.1) else "application/json"
        known = [ETAG, f"W/{ETAG}", "*", f'"x", {ETAG}', ETAG.strip('"'), '"', "", f"{ETAG},,"]
        if often(0.1 if declared.method in CHANGES else 0.3):
            for _ in range(1 + often(0.1)):
                yield "If-None-Match", choice([*known, '"é"', ETAG, ETAG, ETAG])
        if declared.method in CHANGES and often(0.3):
            yield "If-Match", choice([*known, '"é"', ETAG, ETAG, ETAG])
        if often(0.3):
            yield "Origin", choice([SHOP, ELSEWHERE, "null", f"{SHOP}.evil.example"])
            if often(0.1):
                yield "Origin", SHOP
        for _ in range(often(0.5) + often(0.1)):
            yield "Accept-Encoding", choice(CODINGS)
        if often(0.3):
            yield "X-Request-ID", choice(["mine", "no good", "x" * 65])
        if often(0.1):
            name, value = choice(RARE)
            if name != "Content-Length" or not body:
                yield name, value
