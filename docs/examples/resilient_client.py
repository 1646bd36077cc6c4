"""A client of Octavo that keeps working while connections break, limits refuse, and workers stop.

It needs only httpx. docs/clients.md explains its parts; tests/test_resilient_client.py runs it
under faults. Copy it, and change what your program needs.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

Book = dict[str, Any]

ATTEMPTS = 10  # of one request
BACKOFF_SECONDS = 0.1  # the longest wait before the second attempt; it doubles with each attempt
MAX_BACKOFF_SECONDS = 10.0
BATCH_SIZE = 1_000  # ids of one batch-get
CACHED_BOOKS = 10_000
IDEMPOTENT = {"GET", "HEAD", "PUT", "DELETE"}  # RFC 9110, section 9.2.2


class CatalogueClient:
    """Reads and writes books. Use it as an async context manager.

    base_url: of the service. token: an access token; without it, the client can only read.
    options: other parameters of httpx.AsyncClient.
    """

    def __init__(self, base_url: str, token: str | None = None, **options: Any) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        options = {"timeout": 30} | options
        self._http = httpx.AsyncClient(base_url=base_url, headers=headers, **options)
        self._cache: dict[int, tuple[str, Book]] = {}  # ETag and book, by id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def request(
        self, method: str, path: str, *, is_read: bool = False, **options: Any
    ) -> httpx.Response:
        """Send a request, and again after a broken connection, a 429, a 503, or a 409 in flight.

        After a broken connection, a request is repeated only if it is idempotent, has an
        Idempotency-Key, or changes nothing (is_read). options: as of httpx.
        Raises httpx.HTTPStatusError for an error status other than 412, and httpx.TransportError
        if all attempts fail.
        """
        has_key = "Idempotency-Key" in options.get("headers", {})
        is_repeatable = is_read or has_key or method in IDEMPOTENT
        for attempt in range(1, ATTEMPTS + 1):
            longest = min(BACKOFF_SECONDS * 2**attempt, MAX_BACKOFF_SECONDS)
            wait = random.uniform(0, longest)
            try:
                response = await self._http.request(method, path, **options)
            except httpx.TransportError:  # the service may have received the request
                if attempt == ATTEMPTS or not is_repeatable:
                    raise
            else:
                is_in_flight = response.status_code == 409 and "Retry-After" in response.headers
                if not (response.status_code in {429, 503} or is_in_flight):
                    break
                if attempt == ATTEMPTS:
                    break
                # Jitter: otherwise all refused clients come back at the same moment.
                wait += float(response.headers.get("Retry-After", 0))
            await asyncio.sleep(wait)
        if not response.is_success and response.status_code not in {304, 412}:
            response.raise_for_status()
        return response

    async def get_book(self, book_id: int) -> Book:
        """Return a book. A book that has not changed since the last call is not sent again."""
        tag, known = self._cache.get(book_id, ("", {}))
        headers = {"If-None-Match": tag} if tag else {}
        response = await self.request("GET", f"/api/books/{book_id}", headers=headers)
        return known if response.status_code == 304 else self._remember(response)

    async def create_book(self, book: Book) -> Book:
        """Create a book, exactly once. All attempts send the same key."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self._remember(await self.request("POST", "/api/books", json=book, headers=headers))

    async def update_book(self, book_id: int, change: Callable[[Book], Book]) -> Book:
        """Change a book without losing the update of another client.

        change: returns the fields to change; it is called again if the book has changed meanwhile.
        After a broken connection it may see its own change, and must then return the same fields.
        """
        while True:
            book = await self.get_book(book_id)
            headers = {"If-Match": self._cache[book_id][0]}
            response = await self.request(
                "PATCH", f"/api/books/{book_id}", json=change(book), headers=headers
            )
            if response.status_code != 412:
                return self._remember(response)

    async def walk(self) -> AsyncIterator[Book]:
        """Yield every book, by id: 100 books for each request."""
        params: dict[str, Any] = {"limit": 100}
        while True:
            part = (await self.request("GET", "/api/books", params=params)).json()
            for book in part["items"]:
                yield book
            if not part["has_more"]:
                return
            params["cursor"] = part["next_cursor"]

    async def get_books(self, ids: Sequence[int]) -> tuple[dict[int, Book], list[int]]:
        """Return many books by id, and the ids that do not exist: 1,000 ids for each request."""
        books: dict[int, Book] = {}
        missing: list[int] = []
        for start in range(0, len(ids), BATCH_SIZE):
            body = {"ids": list(ids[start : start + BATCH_SIZE])}
            response = await self.request("POST", "/api/books/batch-get", json=body, is_read=True)
            part = response.json()
            books |= {book["id"]: book for book in part["items"]}
            missing += part["missing"]
        return books, missing

    def _remember(self, response: httpx.Response) -> Book:
        book: Book = response.json()
        if len(self._cache) >= CACHED_BOOKS:
            self._cache.pop(next(iter(self._cache)))  # the oldest
        self._cache[book["id"]] = response.headers["ETag"], book
        return book
