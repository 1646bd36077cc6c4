"""Litestar as an expert tunes it: handlers return bytes, without a DTO for responses."""

from typing import Any

from litestar import Litestar, Request, get, post, put
from litestar.config.compression import CompressionConfig
from litestar.response.base import ASGIResponse

from bench.peers.catalogue import Catalogue
from bench.peers.wire import GZIP_LEVEL, GZIP_MIN_SIZE, BookResponse, address_of

catalogue = Catalogue()


def respond(response: BookResponse) -> ASGIResponse:
    """Send a response unchanged."""
    return ASGIResponse(
        body=response.body,
        status_code=response.status,
        headers=dict(response.headers),
        media_type="application/json",
    )


def caller(request: Request[Any, Any, Any]) -> str:
    """Return the address of the client."""
    client = request.client
    return address_of(request.headers.get("x-forwarded-for"), client.host if client else "")


@get("/api/books/{book_id:int}")
async def get_book(book_id: int, request: Request[Any, Any, Any]) -> ASGIResponse:
    """Return a book."""
    known = request.headers.get("if-none-match")
    return respond(await catalogue.item(book_id, caller(request), known))


@get("/api/books")
async def list_books(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Return a list of books."""
    known = request.headers.get("if-none-match")
    query = request.scope["query_string"].decode()
    return respond(await catalogue.page(query, caller(request), known))


@get("/api/search")
async def search_books(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Return the books that match best."""
    known = request.headers.get("if-none-match")
    query = request.scope["query_string"].decode()
    return respond(await catalogue.search(query, caller(request), known))


@post("/api/books")
async def create_book(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Create a book."""
    headers = request.headers
    authorization, key = headers.get("authorization"), headers.get("idempotency-key")
    return respond(await catalogue.create(await request.body(), authorization, key))


@put("/api/books/{book_id:int}")
async def update_book(book_id: int, request: Request[Any, Any, Any]) -> ASGIResponse:
    """Change a book."""
    headers = request.headers
    authorization, if_match = headers.get("authorization"), headers.get("if-match")
    return respond(await catalogue.change(book_id, await request.body(), authorization, if_match))


@post("/api/books/bulk")
async def create_books(request: Request[Any, Any, Any], atomic: bool = False) -> ASGIResponse:
    """Create many books."""
    authorization = request.headers.get("authorization")
    return respond(await catalogue.bulk(await request.body(), authorization, atomic=atomic))


@post("/api/books/batch-get")
async def batch_get_books(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Return many books by their ids."""
    return respond(await catalogue.batch(await request.body(), caller(request)))


app = Litestar(
    [
        get_book,
        list_books,
        search_books,
        create_book,
        update_book,
        create_books,
        batch_get_books,
    ],
    on_startup=[catalogue.open],
    on_shutdown=[catalogue.close],
    compression_config=CompressionConfig(
        backend="gzip", gzip_compress_level=GZIP_LEVEL, minimum_size=GZIP_MIN_SIZE
    ),
    openapi_config=None,
    logging_config=None,
)
