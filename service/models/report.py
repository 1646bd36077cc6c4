"""The table of the report, which all processes share."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.models.catalogue import Base
from service.models.types import UtcDateTime


class StoredReport(Base):
    """The latest report, in one row. body: JSON. generated_at: of the report.

    claimed_at: when a process last began to compute a report. Only this process may store it.
    """

    __tablename__ = "reports"
    __table_args__ = (CheckConstraint("id = 1", name="id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    claimed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    generated_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    body: Mapped[str | None] = mapped_column(Text)
