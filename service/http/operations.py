"""Define operations: routes whose handlers take a Call and return a Reply, without Quart."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import BaseModel, ValidationError
from quart import Quart, Response, current_app, request
from quart_schema import document_querystring, document_request
from quart_schema.openapi import QUART_SCHEMA_SECURITY_ATTRIBUTE

from service.cache import Kind, ListQuery, ListResult, Status
from service.errors import APIError, InvalidInputError
from service.http.call import Call
from service.http.parsing import ORDINARY, BodyLimits
from service.http.requests import BODY_LIMITS
from service.http.responses import (
    JSON,
    ListResponse,
    cache_status,
    content_headers,
    encode_headers,
    etag,
    matches_etag,
    to_bytes,
)
from service.http.schemas import messages

if TYPE_CHECKING:
    pass

OPERATION = "_octavo_operation"  # attribute of a view: its Operation
ITEM = "_octavo_item"  # attribute of a handler: its Item

Headers = list[tuple[bytes, bytes]]
Stream = AsyncGenerator[bytes, None]  # the parts of a body; its sender closes it
Handler = Callable[..., Awaitable["Reply"]]


class RawResponse(NamedTuple):
    """A complete response, with ASGI headers. body: bytes, or a stream, of unknown length."""

    status: int
    headers: Headers
    body: bytes | Stream


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of a handler.

    body: a model, JSON bytes, a stream (`headers` has its Content-Type), or None for a response
    without a body. status: HTTP status.
    headers: extra headers, not sent with 304. is_tagged: the response has an ETag.
    is_public: the response is the same for all clients; it has an ETag, and If-None-Match can give
    304. cached: for the Cache-Status header. listed: the list that was read; the warm path may
    remember its response.
    """

    body: BaseModel | bytes | Stream | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    is_tagged: bool = False
    is_public: bool = False
    cached: Status | None = None
    listed: tuple[ListQuery, ListResult] | None = None

    @classmethod
    def of_list(
        cls,
        body: bytes,
        listing: ListQuery,
        rows: ListResult,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Make the reply for a public list that was read through the cache."""
        listed = (listing, rows)
        return cls(body, 200, headers or {}, is_public=True, cached=rows.status, listed=listed)


def validate_querystring(model: type[BaseModel]) -> Callable[[Handler], Handler]:
    """Validate and document the query, and pass it as `query_args`. Raises InvalidInputError."""

    def decorator(handler: Handler) -> Handler:
        @wraps(handler)
        async def validated(call: Call, **values: Any) -> Reply:
            query_args = _validate(model, dict(call.args))
            return await handler(call, query_args=query_args, **values)

        return document_querystring(model)(validated)

    return decorator


def validate_request(
    model: type[BaseModel], limits: BodyLimits = ORDINARY
) -> Callable[[Handler], Handler]:
    """Validate and document the JSON body, and pass it as `data`. Raises InvalidInputError."""

    def decorator(handler: Handler) -> Handler:
        @wraps(handler)
        async def validated(call: Call, **values: Any) -> Reply:
            data = _validate(model, await call.json(limits))
            return await handler(call, data=data, **values)

        setattr(validated, BODY_LIMITS, limits)
        return document_request(model)(validated)

    return decorator


def _validate(model: type[BaseModel], values: dict[str, Any]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidInputError(messages(error)) from None


class Item(NamedTuple):
    """Declares which cached entry an operation returns. kind: of the entry.

    missing: makes the error for the id of a row that does not exist. show: converts the body of the
    entry to the body of the response.
    """

    kind: Kind
    missing: Callable[[int], APIError]
    show: Callable[[bytes], bytes]


def cached_item(
    kind: Kind, missing: Callable[[int], APIError], show: Callable[[bytes], bytes] = bytes
) -> Callable[[Handler], Handler]:
    """Declare that an operation returns the cached entry of the row whose id is in the path."""

    def decorator(handler: Handler) -> Handler:
        setattr(handler, ITEM, Item(kind, missing, show))
        return handler

    return decorator


COUNTS_VIEWS = "_octavo_counts_views"  # attribute of a view: its responses are views of a book


def counts_views(handler: Handler) -> Handler:
    """Declare that each GET (200 or 304) counts as a view of the book whose id ends the path."""
    setattr(handler, COUNTS_VIEWS, True)
    return handler


class Operation:
    """Runs a handler. item: its cached entry, if declared and public. view: its Quart view."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._is_personal = hasattr(handler, QUART_SCHEMA_SECURITY_ATTRIBUTE)
        # The warm path must not send the response for one user to another.
        self.item: Item | None = None if self._is_personal else getattr(handler, ITEM, None)
        self.view: Any = None

    async def run(self, call: Call, values: Mapping[str, Any]) -> RawResponse:
        """Run the handler with the `values` in the path. The handler's errors propagate."""
        reply = await self._handler(call, **values)
        response = _response(call, reply)
        if self._is_personal:
            call.context.listed = None
        return response


def _response(call: Call, reply: Reply) -> RawResponse:
    body = reply.body
    if body is None:
        headers: Headers = [*encode_headers(reply.headers), (b"cache-control", b"no-store")]
        return RawResponse(reply.status, headers, b"")
    if isinstance(body, AsyncGenerator):
        headers = [*encode_headers(reply.headers), (b"cache-control", b"no-store")]
        is_head = call.scope["method"] == "HEAD"
        return RawResponse(reply.status, headers, b"" if is_head else body)
    if not isinstance(body, bytes):
        body = to_bytes(body)
    headers = [(b"cache-control", b"no-cache" if reply.is_public else b"no-store")]
    tag = etag(body) if reply.is_public or reply.is_tagged else ""
    if tag:
        headers.append((b"etag", b'"%b"' % tag.encode()))
    if reply.cached is not None:
        headers += encode_headers(cache_status(call.scope, reply.cached))
    if reply.listed is not None:
        call.context.listed = ListResponse(body, tag, reply.headers, *reply.listed)
    if reply.is_public and matches_etag(tag, call.headers.if_none_match):
        call.context.unchanged = JSON, len(body)
        return RawResponse(304, headers, b"")
    return RawResponse(
        reply.status, [*content_headers(body), *encode_headers(reply.headers), *headers], body
    )


def operation(handler: Handler) -> Callable[..., Awaitable[Response]]:
    """Make the Quart view of a handler (a decorator). The view keeps the handler's attributes."""
    runner = Operation(handler)

    @wraps(handler)
    async def view(**values: Any) -> Response:
        read_body: Any = getattr(request, "read_body", request.get_data)
        call = Call(current_app.extensions, request.scope, request.path, read_body)
        status, headers, body = await runner.run(call, values)
        response = Response(body, status)
        response.timeout = Ellipsis if isinstance(body, bytes) else None
        response.headers.remove("Content-Type")
        if not body:
            response.headers.remove("Content-Length")
        for key, value in headers:
            if key != b"content-length":
                response.headers.add(key.decode(), value.decode())
        return response

    runner.view = view
    setattr(view, OPERATION, runner)
    return view


def operation_of(app: Quart, endpoint: str) -> Operation | None:
    """Return the operation of an endpoint, or None if its view is not an operation."""
    runner: Operation | None = getattr(app.view_functions[endpoint], OPERATION, None)
    return runner
