"""The client that writes many books at once, repeats requests, and checks for stale reads."""

from collections.abc import Callable, Mapping
from typing import Any

from locust import task

from loadtest.client import REPEATED, Client, is_replay
from loadtest.editor import AFTER_WRITE
from loadtest.mirror import BATCH_GET
from loadtest.verdict import STALE

BULK = "/api/books/bulk"
ITEMS = (10, 30)  # minimum and maximum of a request; up to 100 cost one unit of the limit
MAX_BOOKS = 100  # of a supplier


class Supplier(Client):
    """Creates, changes and deletes its books in bulk, and reads them at once."""

    weight = 1

    def on_start(self) -> None:
        """Start without books."""
        super().on_start()
        self.own: dict[int, int] = {}  # the version of each book, by id

    @task
    def write(self) -> None:
        """Create, change or delete books."""
        number = self.chance.randint(*ITEMS)
        if len(self.own) < number:
            self._create(number)
        elif len(self.own) > MAX_BOOKS or self.chance.random() < 0.3:
            self._delete(self.chance.sample(sorted(self.own), number))
        else:
            self._change(self.chance.sample(sorted(self.own), number))

    def _create(self, number: int) -> None:
        """Create books, and sometimes repeat the request, as if the response had been lost."""
        items = [
            {"title": f"Load {self.chance.getrandbits(32):x}", "author": "Somebody", "price": n}
            for n in range(number)
        ]
        body, key = {"items": items}, self.new_key()
        response = self._send("POST", body, 201, number, key=key)
        if response is None:
            return
        if self.chance.random() < 0.3:
            repeated = is_replay(response)
            self.send(
                "POST", BULK, body=body, key=key, expected=(207,), note=REPEATED, check=repeated
            )
        self._remember(response)

    def _change(self, ids: list[int]) -> None:
        price = self.chance.randrange(10_000) / 100
        items = [{"id": id_, "version": self.own[id_], "price": price} for id_ in ids]
        response = self._send("PATCH", {"items": items}, 200, len(ids))
        if response is not None:
            self._remember(response)

    def _delete(self, ids: list[int]) -> None:
        items = [{"id": id_, "version": self.own[id_]} for id_ in ids]
        if self._send("DELETE", {"items": items}, 204, len(ids)) is not None:
            for id_ in ids:
                del self.own[id_]
            self._read(dict.fromkeys(ids))

    def _send(
        self, method: str, body: Any, status: int, number: int, *, key: str | None = None
    ) -> Any:
        """Send a bulk request whose items must all have `status`. None: it was refused."""

        def check(response: Any) -> str | None:
            results = response.json()["results"]
            expected = [(index, status) for index in range(number)]
            seen = [(result["index"], result["status"]) for result in results]
            return None if seen == expected else "the results are not those of the items"

        response = self.send(method, BULK, body=body, key=key, expected=(207,), check=check)
        if response is None or response.status_code == 429:
            return None
        if response.status_code != 207 or check(response):
            self.own.clear()  # unknown which books there are
            return None
        return response

    def _remember(self, response: Any) -> None:
        written = {each["id"]: each["version"] for each in response.json()["results"]}
        self.own |= written
        self._read(written)

    def _read(self, written: Mapping[int, int | None]) -> None:
        """Read books after a write. written: their versions; None: the book is deleted."""
        check = _is_current(written)
        self.send("POST", BATCH_GET, body={"ids": list(written)}, note=AFTER_WRITE, check=check)


def _is_current(written: Mapping[int, int | None]) -> Callable[[Any], str | None]:
    def check(response: Any) -> str | None:
        body = response.json()
        read: dict[int, int | None] = {book["id"]: book["version"] for book in body["items"]}
        read |= dict.fromkeys(body["missing"])
        return None if read == written else STALE

    return check
