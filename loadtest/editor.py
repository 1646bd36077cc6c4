"""Who writes, and finds out whether anything is stale."""

from typing import Any

from locust import task

from loadtest.client import Client
from loadtest.people import BOOK, BOOKS, OF_USER
from loadtest.verdict import STALE

OWN = " after a write"
MOST_OWN = 20  # books of an editor: a page


class Editor(Client):
    """Writes, and looks at once: who sees less than what was answered has seen something stale."""

    weight = 1

    def on_start(self) -> None:
        """Begin without a book."""
        super().on_start()
        self.own: dict[int, str] = {}  # books, by the tags that the last write was told
        self.all_known = True  # no write was left without an answer

    @task
    def write(self) -> None:
        """Add a book, change one or take one away."""
        draw = self.chance.random()
        if not self.own or (draw < 0.25 and len(self.own) < MOST_OWN):
            self._create()
        elif draw < 0.85:
            self._change(self.chance.choice(list(self.own)))
        else:
            self._delete(self.chance.choice(list(self.own)))

    def _create(self) -> None:
        book = {"title": f"Load {self.chance.getrandbits(32):x}", "author": "Somebody"}
        answer = self.ask("POST", BOOKS, body=book, expected=(201,))
        if self._is_done(answer):
            self._remember(answer)

    def _change(self, book_id: int) -> None:
        price = self.chance.randrange(10_000) / 100
        tag = self.own[book_id]
        answer = self.ask("PATCH", BOOK, book_id, body={"price": price}, tag=tag)
        if self._is_done(answer, book_id):
            self._remember(answer)

    def _delete(self, book_id: int) -> None:
        tag = self.own[book_id]
        answer = self.ask("DELETE", BOOK, book_id, tag=tag, expected=(204,))
        if self._is_done(answer, book_id):
            del self.own[book_id]
            self._read(book_id, lambda seen: STALE if seen.status_code == 200 else None)
            self._list()

    def _is_done(self, answer: Any, book_id: int = 0) -> bool:
        if answer is None or answer.status_code == 429:
            return False
        if 200 <= answer.status_code < 300:
            return True
        self.own.pop(book_id, None)  # nobody knows what became of it
        self.all_known = False
        return False

    def _remember(self, answer: Any) -> None:
        book = answer.json()
        version = book["version"]
        self.own[book["id"]] = answer.headers["ETag"]

        def check(seen: Any) -> str | None:
            if seen.status_code == 404 or seen.json()["version"] < version:
                return STALE
            return None if seen.content == answer.content else "not what was written"

        self._read(book["id"], check)
        self._list()

    def _read(self, book_id: int, check: Any) -> None:
        self.ask("GET", BOOK, book_id, expected=(200, 404), note=OWN, check=check)

    def _list(self) -> None:
        """Read one's books: one page, of which none is missing and none is gone."""

        def check(seen: Any) -> str | None:
            total, ids = int(seen.headers["X-Total-Count"]), {book["id"] for book in seen.json()}
            return None if total == len(ids) and ids == self.own.keys() else STALE

        if self.all_known and self.chance.random() < 0.5:
            self.ask("GET", OF_USER, self.id, note=OWN, check=check)
