"""Who reads: browsing, asking again, searching."""

from collections import OrderedDict

from locust import task

from loadtest.client import Client, body_of
from loadtest.demand import Query

BOOKS, BOOK, OF_USER = "/api/books", "/api/books/{id}", "/api/users/{id}/books"
SHELVES = (None, "Fiction", "Non-Fiction", "Science", "History")
REMEMBERED = 200  # tags


class Browser(Client):
    """Looks at pages and at books, mostly at those that everybody looks at."""

    weight = 5

    @task(6)
    def look_at_a_book(self) -> None:
        """Read a book."""
        self.ask("GET", BOOK, self.crowd.popular.draw(self.chance))

    @task(2)
    def look_at_a_page(self) -> None:
        """Read a page: one of the first, mostly."""
        self.ask("GET", BOOKS, query={"page": 1 + int(self.chance.expovariate(0.7))})

    @task(1)
    def look_at_a_shelf(self) -> None:
        """Read the books of a user."""
        self.ask("GET", OF_USER, self.chance.choice(self.crowd.user_ids))


class Hasty(Browser):
    """Asks again and again, whatever a 429 says."""

    weight = 1
    patient = False


class Returner(Client):
    """Has seen it before, and asks whether it has changed."""

    weight = 3

    def on_start(self) -> None:
        """Begin without a memory."""
        super().on_start()
        self.tags: OrderedDict[str, str] = OrderedDict()

    @task(5)
    def look_at_a_book_again(self) -> None:
        """Read a book unless it is as it was."""
        self._look(BOOK, self.crowd.popular.draw(self.chance))

    @task(2)
    def look_at_a_page_again(self) -> None:
        """Read a page unless it is as it was: of a genre, or the newest books, where all appear."""
        genre = self.chance.choice(SHELVES)
        self._look(BOOKS, query={"genre": genre} if genre else {"page": 1})

    def _look(self, route: str, row_id: int = 0, query: Query | None = None) -> None:
        key = f"{route} {row_id} {query}"
        answer = self.ask("GET", route, row_id, query=query, tag=self.tags.get(key))
        if answer is not None and (seen := (answer.headers or {}).get("ETag")):
            self.tags[key] = seen
            self.tags.move_to_end(key)
            if len(self.tags) > REMEMBERED:
                self.tags.popitem(last=False)


class Searcher(Client):
    """Filters and sorts, and sometimes goes on behind a cursor."""

    weight = 2

    @task(2)
    def filter_a_page(self) -> None:
        """Read the first page of what fits."""
        self.ask("GET", BOOKS, query=self.crowd.filters.draw(self.chance))

    @task(1)
    def walk(self) -> None:
        """Read what fits, three times twenty at most."""
        query = self.crowd.filters.draw(self.chance) | {"limit": 20}
        for _ in range(3):
            body = body_of(self.ask("GET", BOOKS, query=query))
            if body is None or "next_cursor" not in body:
                return
            query["cursor"] = body["next_cursor"]
