"""The client that changes books which others change as well, so that no change is lost."""

from typing import Any

from locust import task

from loadtest.client import Client
from loadtest.readers import BOOK, BOOKS

MAX_CURATED = 10  # books that all curators change
TRIES = 5  # of a change


class Curator(Client):
    """An administrator. Repeats a change until no other change came between read and write."""

    weight = 1
    is_admin = True

    def on_start(self) -> None:
        """Add a book for all curators."""
        super().on_start()
        if len(self.shared.curated) < MAX_CURATED:
            book = {"title": "Curated", "author": "Somebody", "price": 0}
            self.shared.curated.append(self._send_until("POST", BOOKS, book, 201)["id"])

    @task
    def raise_price(self) -> None:
        """Add a cent to the price of a book: read it, and write it with If-Match."""
        book_id = self.chance.choice(self.shared.curated)
        for _ in range(TRIES):
            read = self.send("GET", BOOK, book_id)
            if read is None or read.status_code != 200:
                return
            if self._write(book_id, read.json(), read.headers["ETag"]) != 412:
                return

    def _write(self, book_id: int, book: Any, tag: str) -> int:
        """Write a book that was read; return the status, or 0 if there was no request."""
        names = ("title", "author", "price")
        body = {name: book[name] for name in names} | {"price": round(book["price"] + 0.01, 2)}

        def check(response: Any) -> str | None:
            if response.status_code == 412:
                return None if response.headers.get("ETag") != tag else "412 for the present tag"
            is_next = response.json()["version"] == book["version"] + 1
            return None if is_next else "a change was lost"

        response = self.send(
            "PUT", BOOK, book_id, body=body, tag=tag, expected=(200, 412), check=check
        )
        return 0 if response is None else int(response.status_code)
