"""Reviews in requests and responses."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.http.pagination import Links, Pagination
from service.http.schemas import Instant, Int64, Schema

Stars = Annotated[int, Field(ge=1, le=5, description="from 1 to 5")]


class ReviewCreate(Schema):
    """A new review."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"stars": 5, "text": "Well told."}]})

    stars: Stars
    text: str = Field(max_length=2_000)


class ReviewOut(BaseModel):
    """A review in a response."""

    model_config = ConfigDict(from_attributes=True, title="Review")

    id: Int64
    book_id: Int64
    user_id: Int64
    stars: Stars
    text: str
    created_at: Instant


class ReviewPage(BaseModel):
    """A page of the reviews of a book, newest first."""

    items: list[ReviewOut]
    total: Int64
    pagination: Pagination
    links: Links
