"""The clients that read: they browse, revalidate and search."""

from collections import OrderedDict
from typing import Any

from locust import task

from loadtest.client import Client, body_of
from loadtest.demand import Query

BOOKS, BOOK, OF_USER = "/api/books", "/api/books/{id}", "/api/users/{id}/books"
POPULAR, SEARCH = "/api/popular-books", "/api/search"
GENRES = (None, "Fiction", "Non-Fiction", "Science", "History")
MAX_TAGS = 200  # ETags
MAX_POPULAR = 10  # books


class Browser(Client):
    """Reads pages and books, mostly popular ones."""

    weight = 5

    @task(6)
    def read_book(self) -> None:
        """Read a book."""
        self.send("GET", BOOK, self.shared.popular.draw(self.chance))

    @task(2)
    def read_page(self) -> None:
        """Read a page, mostly one of the first pages."""
        self.send("GET", BOOKS, query={"page": 1 + int(self.chance.expovariate(0.7))})

    @task(1)
    def read_books_of_user(self) -> None:
        """Read the books of a user."""
        self.send("GET", OF_USER, self.chance.choice(self.shared.user_ids))

    @task(1)
    def read_popular_books(self) -> None:
        """Read the most viewed books."""

        def check(response: Any) -> str | None:
            views = [book["views"] for book in response.json()]
            is_ordered = views == sorted(views, reverse=True) and len(views) <= MAX_POPULAR
            return None if is_ordered else "not the most viewed books"

        self.send("GET", POPULAR, check=check)


class ImpatientBrowser(Browser):
    """Ignores the Retry-After of a 429."""

    weight = 1
    patient = False


class ReturningClient(Client):
    """Revalidates with the ETags of previous responses."""

    weight = 3

    def on_start(self) -> None:
        """Start without ETags."""
        super().on_start()
        self.tags: OrderedDict[str, str] = OrderedDict()

    @task(5)
    def revalidate_book(self) -> None:
        """Read a book, or get 304 if it has not changed."""
        self._revalidate(BOOK, self.shared.popular.draw(self.chance))

    @task(2)
    def revalidate_page(self) -> None:
        """Read a page of a genre or of the newest books, or get 304 if it has not changed."""
        genre = self.chance.choice(GENRES)
        self._revalidate(BOOKS, query={"genre": genre} if genre else {"page": 1})

    def _revalidate(self, route: str, row_id: int = 0, query: Query | None = None) -> None:
        key = f"{route} {row_id} {query}"
        response = self.send("GET", route, row_id, query=query, tag=self.tags.get(key))
        if response is not None and (etag := (response.headers or {}).get("ETag")):
            self.tags[key] = etag
            self.tags.move_to_end(key)
            if len(self.tags) > MAX_TAGS:
                self.tags.popitem(last=False)


class Searcher(Client):
    """Searches, filters and sorts lists, and sometimes follows a cursor."""

    weight = 2

    @task(2)
    def search(self) -> None:
        """Search for words of a book; most searches find it."""
        self.send("GET", SEARCH, query=self.shared.filters.draw_words(self.chance))

    @task(2)
    def filter_a_page(self) -> None:
        """Read the first page of a filtered list."""
        self.send("GET", BOOKS, query=self.shared.filters.draw(self.chance))

    @task(1)
    def follow_cursor(self) -> None:
        """Read a filtered list with cursors: at most 3 pages of 20 books."""
        query = self.shared.filters.draw(self.chance) | {"limit": 20}
        for _ in range(3):
            body = body_of(self.send("GET", BOOKS, query=query))
            if body is None or "next_cursor" not in body:
                return
            query["cursor"] = body["next_cursor"]
