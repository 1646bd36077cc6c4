"""Create the table `reports`, whose single row holds the latest report."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reports",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("generated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_reports"),
        sa.CheckConstraint("id = 1", name=op.f("ck_reports_id")),
    )
    op.execute("INSERT INTO reports (id) VALUES (1)")


def downgrade() -> None:
    op.drop_table("reports")
