"""The table of idempotency records: the replies to writes that had an Idempotency-Key."""

from datetime import datetime

from sqlalchemy import ForeignKey, SmallInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.models.catalogue import Base, Id
from service.models.types import UtcDateTime


class IdempotencyRecord(Base):
    """The reply to the first request with a key of a user, written in the request's transaction.

    fingerprint: a digest of this request; another request with the key is refused.
    headers: the handler's headers, as a JSON object. body: JSON, or NULL for a reply without one.
    """

    __tablename__ = "idempotency_records"

    user_id: Mapped[int] = mapped_column(
        Id, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(32))
    status: Mapped[int] = mapped_column(SmallInteger)
    headers: Mapped[str] = mapped_column(Text)
    is_tagged: Mapped[bool]
    body: Mapped[str | None] = mapped_column(Text)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
