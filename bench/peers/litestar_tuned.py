"""Litestar as an expert tunes it: handlers return bytes, without a DTO for responses."""

from typing import Any

from litestar import Litestar, Request, get, post
from litestar.response.base import ASGIResponse

from bench.peers.catalogue import BookResponse, Catalogue
from bench.peers.wire import address_of

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


@post("/api/books")
async def create_book(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Create a book."""
    authorization = request.headers.get("authorization")
    return respond(await catalogue.create(await request.body(), authorization))


app = Litestar(
    [get_book, list_books, create_book],
    on_startup=[catalogue.open],
    on_shutdown=[catalogue.close],
    openapi_config=None,
    logging_config=None,
)
