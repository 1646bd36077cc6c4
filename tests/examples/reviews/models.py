"""The table of reviews."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.models import Base, Id
from service.models.cached import cached
from service.models.types import UtcDateTime, UtcNow


@cached("review", lists=True)
class Review(Base):
    """A user's opinion of a book. It is deleted with the book, and with the user."""

    __tablename__ = "reviews"
    __table_args__ = (
        CheckConstraint("stars BETWEEN 1 AND 5", name="stars"),
        CheckConstraint("length(text) <= 2000", name="text"),
        Index("ix_reviews_book_id", "book_id", "created_at", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id", ondelete="CASCADE"))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    stars: Mapped[int]
    text: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=UtcNow())
