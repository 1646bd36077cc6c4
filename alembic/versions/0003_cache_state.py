"""Create the table `cache_state`, whose single row says whether the cache is on."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cache_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("mode", sa.String(3), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_cache_state"),
        sa.CheckConstraint("id = 1", name=op.f("ck_cache_state_id")),
        sa.CheckConstraint("mode IN ('on', 'off')", name=op.f("ck_cache_state_mode")),
    )
    op.execute("INSERT INTO cache_state VALUES (1, 0, '', 'off', '', 0)")


def downgrade() -> None:
    op.drop_table("cache_state")
