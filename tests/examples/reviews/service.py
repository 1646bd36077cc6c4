"""The rules of reviews, and their SQL."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.books.service import not_found as book_not_found
from service.cache import Entry, Kind, ListQuery, shape_of
from service.db.list_queries import FilterSelection, ListDefinition, Order, Page, list_page
from service.errors import ForbiddenError, ResourceNotFoundError
from service.http.auth import CurrentUser, recheck_user
from service.models import Book
from tests.examples.reviews.models import Review
from tests.examples.reviews.schemas import ReviewCreate, ReviewOut

COLUMNS = Review.__table__.c


def _body(review: Any) -> bytes:
    return ReviewOut.model_validate(review).model_dump_json().encode()


async def load_reviews(db: AsyncSession, ids: Sequence[int]) -> dict[int, Entry]:
    """Return the entries of the reviews that exist."""
    rows = await db.execute(select(*COLUMNS).where(COLUMNS.id.in_(ids)))
    return {row.id: Entry(b"1", _body(row)) for row in rows}


REVIEWS = Kind("review", shape_of(ReviewOut), load_reviews, _body)


def _conditions(names: tuple[str, ...], sort: str, dialect: str) -> Sequence[ColumnElement[bool]]:
    return [COLUMNS.book_id == bindparam("book_id")]


CATALOGUE = ListDefinition(
    REVIEWS,
    Review,
    _conditions,
    order=lambda sort: Order(COLUMNS.created_at, COLUMNS.id, descending=True),
    known_count=lambda names: None,
)


def list_reviews(book_id: int, page: Page) -> ListQuery:
    """List a page of the reviews of a book, newest first."""

    def values(dialect: str) -> Mapping[str, Any]:
        return {"book_id": book_id}

    return list_page(
        CATALOGUE, FilterSelection({"book_id": str(book_id)}, "-created_at", values), page
    )


async def create_review(
    db: AsyncSession, book_id: int, data: ReviewCreate, user: CurrentUser
) -> Review:
    """Add a review of a book. Raises ResourceNotFoundError if there is no such book."""
    await recheck_user(db, user)
    if await db.get(Book, book_id, with_for_update={"key_share": True, "read": True}) is None:
        raise book_not_found(book_id)
    review = Review(book_id=book_id, user_id=user.id, **data.model_dump())
    db.add(review)
    await db.flush()
    return review


async def delete_review(db: AsyncSession, book_id: int, review_id: int, user: CurrentUser) -> None:
    """Delete a review. Its author and administrators may."""
    user = await recheck_user(db, user)
    review = await db.get(Review, review_id, with_for_update=True)
    if review is None or review.book_id != book_id:
        raise ResourceNotFoundError(f"Review with id {review_id} not found")
    if review.user_id != user.id and not user.is_admin:
        raise ForbiddenError("Only the author of a review or an administrator may delete it")
    await db.delete(review)
    await db.flush()
