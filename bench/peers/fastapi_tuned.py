"""FastAPI as an expert tunes it: routes return bytes, and responses are not validated."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.middleware.gzip import GZipMiddleware

from bench.peers.catalogue import Catalogue
from bench.peers.wire import GZIP_LEVEL, GZIP_MIN_SIZE, BookResponse, address_of

catalogue = Catalogue()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open the catalogue while the application runs."""
    await catalogue.open()
    yield
    await catalogue.close()


app = FastAPI(lifespan=lifespan, openapi_url=None)
app.add_middleware(GZipMiddleware, minimum_size=GZIP_MIN_SIZE, compresslevel=GZIP_LEVEL)


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


@app.get("/api/search", response_class=Response)
async def search_books(request: Request) -> Response:
    """Return the books that match best."""
    query = request.scope["query_string"].decode()
    known = request.headers.get("if-none-match")
    return respond(await catalogue.search(query, caller(request), known))


@app.post("/api/books", response_class=Response)
async def create_book(request: Request) -> Response:
    """Create a book."""
    headers = request.headers
    authorization, key = headers.get("authorization"), headers.get("idempotency-key")
    return respond(await catalogue.create(await request.body(), authorization, key))


@app.put("/api/books/{book_id}", response_class=Response)
async def update_book(book_id: int, request: Request) -> Response:
    """Change a book."""
    headers = request.headers
    authorization, if_match = headers.get("authorization"), headers.get("if-match")
    return respond(await catalogue.change(book_id, await request.body(), authorization, if_match))


@app.post("/api/books/bulk", response_class=Response)
async def create_books(request: Request, atomic: bool = False) -> Response:
    """Create many books."""
    authorization = request.headers.get("authorization")
    return respond(await catalogue.bulk(await request.body(), authorization, atomic=atomic))


@app.post("/api/books/batch-get", response_class=Response)
async def batch_get_books(request: Request) -> Response:
    """Return many books by their ids."""
    return respond(await catalogue.batch(await request.body(), caller(request)))
