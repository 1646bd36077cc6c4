"""An operation: its handler, what its decorators declare, and its reply."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import BaseModel, ValidationError
from quart import Quart, Response, current_app, request
from quart_schema import document_querystring, document_request
from quart_schema.openapi import QUART_SCHEMA_SECURITY_ATTRIBUTE

from service.cache import Kind, ListQuery, ListResult, Status
from service.errors import APIError, InvalidInputError
from service.operations.call import Call
from service.validation import messages
from service.web import Public, cache_status, etag, is_known, sized, spelled, to_bytes

if TYPE_CHECKING:
    pass

OPERATION = "_octavo_operation"  # of a view
ITEM = "_octavo_item"  # of a handler

Headers = list[tuple[bytes, bytes]]
Handler = Callable[..., Awaitable["Reply"]]


class RawResponse(NamedTuple):
    """A whole answer, as ASGI has it."""

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers.

    body: a model, or the bytes of JSON; None: there is nothing to show. status: of the answer.
    headers: those of an answer that is no 304. is_tagged: it has the ETag of its resource.
    is_public: everybody gets the same; a client that has it already gets 304.
    cached: how the cache answered. listed: the list that was read, which may be kept.
    """

    body: BaseModel | bytes | None = None
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
        """Answer a public list that was read through the cache."""
        kept = (listing, rows)
        return cls(body, 200, headers or {}, is_public=True, cached=rows.status, listed=kept)


def validate_querystring(model: type[BaseModel]) -> Callable[[Handler], Handler]:
    """Give a handler the query as a model, `query_args`. Its document says so."""

    def decorator(handler: Handler) -> Handler:
        @wraps(handler)
        async def validated(call: Call, **values: Any) -> Reply:
            query_args = _validate(model, dict(call.args))
            return await handler(call, query_args=query_args, **values)

        return document_querystring(model)(validated)

    return decorator


def validate_request(model: type[BaseModel]) -> Callable[[Handler], Handler]:
    """Give a handler the body as a model, `data`. Its document says so."""

    def decorator(handler: Handler) -> Handler:
        @wraps(handler)
        async def validated(call: Call, **values: Any) -> Reply:
            data = _validate(model, await call.json())
            return await handler(call, data=data, **values)

        return document_request(model)(validated)

    return decorator


def _validate(model: type[BaseModel], values: dict[str, Any]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidInputError(messages(error)) from None


class Item(NamedTuple):
    """The cached entry that an operation answers with.

    show: makes the answer of the entry's body. missing: makes the error of a row that is not there,
    by its id.
    """

    kind: Kind
    missing: Callable[[int], APIError]
    show: Callable[[bytes], bytes]


def cached_item(
    kind: Kind, missing: Callable[[int], APIError], show: Callable[[bytes], bytes] = bytes
) -> Callable[[Handler], Handler]:
    """Say that an operation answers with the entry of the id in its path, or that it is missing."""

    def decorator(handler: Handler) -> Handler:
        setattr(handler, ITEM, Item(kind, missing, show))
        return handler

    return decorator


class Operation:
    """What runs a handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._is_personal = hasattr(handler, QUART_SCHEMA_SECURITY_ATTRIBUTE)
        # An answer to a user is for nobody else.
        self.item: Item | None = None if self._is_personal else getattr(handler, ITEM, None)
        self.view: Any = None

    async def run(self, call: Call, values: Mapping[str, Any]) -> RawResponse:
        """Call the handler, and make the answer of its reply. Raises what the handler raises."""
        reply = await self._handler(call, **values)
        response = _response(call, reply)
        if self._is_personal:
            call.context.listed = None
        return response


def _response(call: Call, reply: Reply) -> RawResponse:
    body = reply.body
    if body is None:
        return RawResponse(reply.status, [(b"cache-control", b"no-store")], b"")
    if not isinstance(body, bytes):
        body = to_bytes(body)
    headers: Headers = [(b"cache-control", b"no-cache" if reply.is_public else b"no-store")]
    tag = etag(body) if reply.is_public or reply.is_tagged else ""
    if tag:
        headers.append((b"etag", b'"%b"' % tag.encode()))
    if reply.cached is not None:
        headers += spelled(cache_status(call.scope, reply.cached))
    if reply.listed is not None:
        call.context.listed = Public(body, tag, reply.headers, *reply.listed)
    if reply.is_public and is_known(tag, call.headers.tags):
        return RawResponse(304, headers, b"")
    return RawResponse(reply.status, [*sized(body), *spelled(reply.headers), *headers], body)


def operation(handler: Handler) -> Callable[..., Awaitable[Response]]:
    """Make Quart's view of a handler. What stands on the handler stands on the view."""
    made = Operation(handler)

    @wraps(handler)
    async def view(**values: Any) -> Response:
        read_body: Any = getattr(request, "read_body", request.get_data)
        call = Call(current_app.extensions, request.scope, request.path, read_body)
        status, headers, body = await made.run(call, values)
        response = Response(body, status)
        response.headers.remove("Content-Type")
        if not body:
            response.headers.remove("Content-Length")
        for key, value in headers:
            if key != b"content-length":
                response.headers.add(key.decode(), value.decode())
        return response

    made.view = view
    setattr(view, OPERATION, made)
    return view


def operation_of(app: Quart, endpoint: str) -> Operation | None:
    """Give the operation of an endpoint, if its view is one."""
    made: Operation | None = getattr(app.view_functions[endpoint], OPERATION, None)
    return made
