"""The client that keeps a copy of the catalogue, and checks that the copy becomes no older."""

from typing import Any

from locust import task

from loadtest.client import Client, body_of
from loadtest.demand import Query
from loadtest.readers import BOOKS
from loadtest.verdict import STALE

BATCH_GET, DATA = "/api/books/batch-get", "/api/data"
PAGE_SIZE = 100  # books of a page, and of a batch: one unit of the limit
EXPORT_SIZE = 200  # books of a page of the export
MAX_PAGES = 3  # of one walk
MAX_COPIES = 2_000  # books of which the client knows the version


class Mirror(Client):
    """Reads ids and versions by cursor, and then the books whose version is new to it."""

    weight = 1

    def on_start(self) -> None:
        """Start without a copy."""
        super().on_start()
        self.versions: dict[int, int] = {}  # by the id of the book
        self.position: int | None = None  # the cursor of the export

    @task(2)
    def synchronise(self) -> None:
        """Read some pages of two fields, and after each page the books that have changed."""
        start = self.chance.randrange(len(self.shared.popular.by_rank))
        query: Query = {"fields": "id,version", "limit": PAGE_SIZE, "cursor": start}
        for _ in range(MAX_PAGES):
            body = body_of(self.send("GET", BOOKS, query=query, note=" by cursor"))
            if body is None:
                return
            self._read_changed({book["id"]: book["version"] for book in body["items"]})
            if "next_cursor" not in body:
                return
            query["cursor"] = body["next_cursor"]

    def _read_changed(self, page: dict[int, int]) -> None:
        changed = [id_ for id_, version in page.items() if self.versions.get(id_) != version]
        if not changed:
            return

        def check(response: Any) -> str | None:
            body = response.json()
            read = {book["id"]: book["version"] for book in body["items"]}
            present = [id_ for id_ in changed if id_ not in body["missing"]]
            if list(read) != present:
                return "the books are not those of the request, in its order"
            return STALE if any(read[id_] < page[id_] for id_ in read) else None

        body = body_of(self.send("POST", BATCH_GET, body={"ids": changed}, check=check))
        if body is not None:
            self.versions |= {book["id"]: book["version"] for book in body["items"]}
            for id_ in list(self.versions)[:-MAX_COPIES]:
                del self.versions[id_]

    @task(1)
    def export(self) -> None:
        """Read the next page of the export."""
        cursor = self.position or 0

        def check(response: Any) -> str | None:
            ids = [book["id"] for book in response.json()["data"]]
            is_ordered = ids == sorted(set(ids)) and all(id_ > cursor for id_ in ids)
            return None if is_ordered and len(ids) <= EXPORT_SIZE else "not a page after the cursor"

        query: Query = {"limit": EXPORT_SIZE, "cursor": cursor}
        body = body_of(self.send("GET", DATA, query=query, check=check))
        if body is not None:
            self.position = body.get("next_cursor")
