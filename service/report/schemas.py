"""Pydantic schemas of the report."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, Field, PlainSerializer

from service.http.schemas import Instant, Int64

ReportedPrice = Annotated[Decimal, PlainSerializer(float, return_type=float)] | None


class PriceReport(BaseModel):
    """The prices of the books that have one; null if none has."""

    min: ReportedPrice
    median: ReportedPrice = Field(description="of an even number of prices: the lower one")
    max: ReportedPrice


class ReportOut(BaseModel):
    """Totals of the catalogue, of the moment `generated_at`."""

    status: Literal["ready"] = "ready"
    books: Int64
    users: Int64
    by_genre: dict[str, Int64] = Field(description="number of books; `none`: without a genre")
    by_decade: dict[str, Int64] = Field(
        description="number of books by the first year of the decade; `none`: without a year"
    )
    price: PriceReport
    generated_at: Instant
