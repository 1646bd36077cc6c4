"""Pydantic schemas of searches."""

from pydantic import BaseModel, Field

from service.books.schemas import BookOut, SearchText
from service.http.pagination import CachedPageQuery
from service.http.schemas import Int64


class SearchQuery(CachedPageQuery):
    """A search, and the page of its results."""

    q: SearchText = Field(
        description="words of title and author, all of them required, the last one as a prefix",
        examples=["brief hist"],
    )


class SearchPage(BaseModel):
    """A page of the books that match best, by rank, then by id."""

    results: list[BookOut]
    total: Int64 = Field(description="number of ranked books: at most 1000, the newest that match")
    fuzzy: bool = Field(
        description="true: no book has all words, and these books have similar words"
    )
