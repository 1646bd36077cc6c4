"""FastAPI as an expert tunes it: routes answer with bytes, nothing is validated on the way out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from bench.peers.catalogue import Answer, Catalogue
from bench.peers.wire import address_of

catalogue = Catalogue()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open the catalogue for as long as the application runs."""
    await catalogue.open()
    yield
    await catalogue.close()


app = FastAPI(lifespan=lifespan, openapi_url=None)


def respond(answer: Answer) -> Response:
    """Send an answer as it is."""
    kind = "application/json" if answer.body else None
    return Response(answer.body, answer.status, dict(answer.headers), kind)


def caller(request: Request) -> str:
    """Give the address of who asks."""
    client = request.client
    return address_of(request.headers.get("x-forwarded-for"), client.host if client else "")


@app.get("/api/books/{book_id}", response_class=Response)
async def get_book(book_id: int, request: Request) -> Response:
    """Give a book."""
    known = request.headers.get("if-none-match")
    return respond(await catalogue.item(book_id, caller(request), known))


@app.get("/api/books", response_class=Response)
async def list_books(request: Request) -> Response:
    """Give a list."""
    query = request.scope["query_string"].decode()
    known = request.headers.get("if-none-match")
    return respond(await catalogue.page(query, caller(request), known))


@app.post("/api/books", response_class=Response)
async def create_book(request: Request) -> Response:
    """Add a book."""
    authorization = request.headers.get("authorization")
    return respond(await catalogue.create(await request.body(), authorization))
