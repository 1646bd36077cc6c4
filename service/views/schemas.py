"""Pydantic schemas of popular books in responses."""

from pydantic import ConfigDict, RootModel

from service.books.schemas import EXAMPLE_OUT, BookOut
from service.http.schemas import Int64


class PopularBook(BookOut):
    """A book with its number of views. The number may be up to 10 minutes old."""

    model_config = ConfigDict(
        title="PopularBook", json_schema_extra={"examples": [EXAMPLE_OUT | {"views": 42}]}
    )

    views: Int64


class PopularBooks(RootModel[list[PopularBook]]):
    """The most viewed books as a JSON array without an envelope, as in the Flask guide."""
