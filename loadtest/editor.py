"""The client that writes, and checks for stale reads."""

from typing import Any

from locust import task

from loadtest.client import REPEATED, Client, is_replay
from loadtest.readers import BOOK, BOOKS, OF_USER
from loadtest.verdict import STALE

AFTER_WRITE = " after a write"
MAX_BOOKS = 20  # books of an editor: one page


class Editor(Client):
    """Writes and reads at once. A read that is older than the response of the write is stale."""

    weight = 1

    def on_start(self) -> None:
        """Start without a book."""
        super().on_start()
        self.own: dict[int, str] = {}  # book ids, with the ETag of the last write
        self.all_known = True  # every write has had its response

    @task
    def write(self) -> None:
        """Create, change or delete a book."""
        draw = self.chance.random()
        if not self.own or (draw < 0.25 and len(self.own) < MAX_BOOKS):
            self._create()
        elif draw < 0.85:
            self._change(self.chance.choice(list(self.own)))
        else:
            self._delete(self.chance.choice(list(self.own)))

    def _create(self) -> None:
        """Create a book, and sometimes repeat the request, as if the response had been lost."""
        book = {"title": f"Load {self.chance.getrandbits(32):x}", "author": "Somebody"}
        key = self.new_key()
        response = self.send("POST", BOOKS, body=book, key=key, expected=(201,))
        if self._succeeded(response):
            if self.chance.random() < 0.2:
                repeated = is_replay(response)
                self.send(
                    "POST",
                    BOOKS,
                    body=book,
                    key=key,
                    expected=(201,),
                    note=REPEATED,
                    check=repeated,
                )
            self._remember(response)

    def _change(self, book_id: int) -> None:
        price = self.chance.randrange(10_000) / 100
        tag = self.own[book_id]
        response = self.send("PATCH", BOOK, book_id, body={"price": price}, tag=tag)
        if self._succeeded(response, book_id):
            self._remember(response)

    def _delete(self, book_id: int) -> None:
        tag = self.own[book_id]
        response = self.send("DELETE", BOOK, book_id, tag=tag, expected=(204,))
        if self._succeeded(response, book_id):
            del self.own[book_id]
            self._read(book_id, lambda read: STALE if read.status_code == 200 else None)
            self._list()

    def _succeeded(self, response: Any, book_id: int = 0) -> bool:
        if response is None or response.status_code == 429:
            return False
        if 200 <= response.status_code < 300:
            return True
        self.own.pop(book_id, None)  # unknown whether the write was executed
        self.all_known = False
        return False

    def _remember(self, response: Any) -> None:
        book = response.json()
        version = book["version"]
        self.own[book["id"]] = response.headers["ETag"]

        def check(read: Any) -> str | None:
            if read.status_code == 404 or read.json()["version"] < version:
                return STALE
            return (
                None
                if read.content == response.content
                else "differs from the response of the write"
            )

        self._read(book["id"], check)
        self._list()

    def _read(self, book_id: int, check: Any) -> None:
        self.send("GET", BOOK, book_id, expected=(200, 404), note=AFTER_WRITE, check=check)

    def _list(self) -> None:
        """Read the page of the editor's books: none may be missing, and no deleted book there."""

        def check(read: Any) -> str | None:
            total, ids = int(read.headers["X-Total-Count"]), {book["id"] for book in read.json()}
            return None if total == len(ids) and ids == self.own.keys() else STALE

        if self.all_known and self.chance.random() < 0.5:
            self.send("GET", OF_USER, self.id, note=AFTER_WRITE, check=check)
