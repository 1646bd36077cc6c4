"""FastAPI as an expert tunes it: routes return bytes, and responses are not validated."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from bench.peers.catalogue import BookResponse, Catalogue
from bench.peers.wire import address_of

catalogue = Catalogue()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open the catalogue while the application runs."""
    await catalogue.open()
    yield
    await catalogue.close()


app = FastAPI(lifespan=lifespan, openapi_url=None)


def respond(response: BookResponse) -> Response:
    """Send a response unchanged."""
    kind = "application/json" if response.body else None
    return Response(response.body, response.status, dict(response.headers), kind)


def caller(request: Request) -> str:
    """Return the address of the client."""
    client = request.client
    return address_of(request.headers.get("x-forwarded-for"), client.host if client else "")


@app.get("/api/books/{book_id}", response_class=Response)
async def get_book(book_id: int, request: Request) -> Response:
    """Return a book."""
    known = request.headers.get("if-none-match")
    return respond(await catalogue.item(book_id, caller(request), known))


@app.get("/api/books", response_class=Response)
async def list_books(request: Request) -> Response:
    """Return a list of books."""
    query = request.scope["query_string"].decode()
    known = request.headers.get("if-none-match")
    return respond(await catalogue.page(query, caller(request), known))


@app.post("/api/books", response_class=Response)
async def create_book(request: Request) -> Response:
    """Create a book."""
    authorization = request.headers.get("authorization")
    return respond(await catalogue.create(await request.body(), authorization))
