"""Create the tables of users, refresh tokens and books."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT = sa.DateTime(timezone=True)
PRICE = sa.Numeric(13, 2).with_variant(sa.Integer(), "sqlite")  # SQLite: cents
TITLE = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")
SEARCH = sa.Text().with_variant(TSVECTOR(), "postgresql")

# SQLite's full-text index (FTS5, external content) stores no text; triggers update the index.
SQLITE_SEARCH = (
    """CREATE VIRTUAL TABLE books_fts USING fts5(
        search, content='books', content_rowid='id',
        tokenize='unicode61 remove_diacritics 0', prefix='2 3')""",
    """CREATE TRIGGER books_fts_insert AFTER INSERT ON books BEGIN
        INSERT INTO books_fts(rowid, search) VALUES (new.id, new.search);
    END""",
    """CREATE TRIGGER books_fts_delete AFTER DELETE ON books BEGIN
        INSERT INTO books_fts(books_fts, rowid, search) VALUES ('delete', old.id, old.search);
    END""",
    """CREATE TRIGGER books_fts_update AFTER UPDATE OF search ON books BEGIN
        INSERT INTO books_fts(books_fts, rowid, search) VALUES ('delete', old.id, old.search);
        INSERT INTO books_fts(rowid, search) VALUES (new.id, new.search);
    END""",
)


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    now = sa.text(
        "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))" if sqlite else "statement_timestamp()"
    )
    op.create_table(
        "users",
        sa.Column("id", ID, nullable=False),
        sa.Column("username", sa.String(50), nullable=False),
        sa.Column("username_key", sa.Text(), nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("email_key", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.String(200), nullable=False),
        sa.Column("tier", sa.String(20), server_default="free", nullable=False),
        sa.Column("is_admin", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("token_version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("kept_jti", sa.String(32)),
        sa.Column("created_at", INSTANT, server_default=now, nullable=False),
        sa.CheckConstraint("length(username) BETWEEN 3 AND 50", name=op.f("ck_users_username")),
        sa.CheckConstraint(
            "tier IN ('free', 'standard', 'premium', 'service')", name=op.f("ck_users_tier")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("username_key", name="uq_users_username_key"),
        sa.UniqueConstraint("email_key", name="uq_users_email_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_users_created_at", "users", ["created_at", "id"])
    op.create_table(
        "refresh_tokens",
        sa.Column("id", ID, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("family", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("access_jti", sa.String(32), nullable=False),
        sa.Column("used", sa.Boolean(), nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_refresh_tokens"),
        sa.UniqueConstraint("digest", name="uq_refresh_tokens_digest"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_refresh_tokens_user_id_users", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_refresh_tokens_user_id", "refresh_tokens", ["user_id"])
    op.create_index("ix_refresh_tokens_family", "refresh_tokens", ["family"])
    op.create_table(
        "books",
        sa.Column("id", ID, nullable=False),
        sa.Column("title", TITLE, nullable=False),
        sa.Column("author", sa.String(100), nullable=False),
        sa.Column("author_key", sa.Text(), nullable=False),
        sa.Column("isbn", sa.String(13)),
        sa.Column("published_year", sa.Integer()),
        sa.Column("genre", sa.String(20)),
        sa.Column("price", PRICE),
        sa.Column("user_id", ID),
        sa.Column("search", SEARCH, nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("created_at", INSTANT, server_default=now, nullable=False),
        sa.Column("updated_at", INSTANT, server_default=now, nullable=False),
        sa.CheckConstraint(
            "length(title) BETWEEN 1 AND 200 AND trim(title) <> ''", name=op.f("ck_books_title")
        ),
        sa.CheckConstraint(
            "length(author) BETWEEN 1 AND 100 AND trim(author) <> ''", name=op.f("ck_books_author")
        ),
        sa.CheckConstraint("length(isbn) IN (10, 13)", name=op.f("ck_books_isbn")),
        sa.CheckConstraint(
            "published_year BETWEEN 1000 AND 2100", name=op.f("ck_books_published_year")
        ),
        sa.CheckConstraint(
            "genre IN ('Fiction', 'Non-Fiction', 'Science', 'History')", name=op.f("ck_books_genre")
        ),
        sa.CheckConstraint(
            f"price BETWEEN 0 AND {9999999999 if sqlite else 99999999.99}",
            name=op.f("ck_books_price"),
        ),
        sa.CheckConstraint("version >= 1", name=op.f("ck_books_version")),
        sa.PrimaryKeyConstraint("id", name="pk_books"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_books_user_id_users", ondelete="CASCADE"
        ),
        sqlite_autoincrement=True,
    )
    for name, *columns in (
        ("ix_books_created_at", "created_at", "id"),
        ("ix_books_author_key", "author_key", "created_at", "id"),
        ("ix_books_genre", "genre", "created_at", "id"),
        ("ix_books_user_id", "user_id", "created_at", "id"),
        ("ix_books_isbn", "isbn"),
        ("ix_books_title", "title", "id"),
    ):
        op.create_index(name, "books", columns)
    for name, expression in (
        ("ix_books_year_asc", "coalesce(published_year, 9999)"),
        ("ix_books_year_desc", "coalesce(published_year, -1)"),
        ("ix_books_price_asc", "coalesce(price, 10000000000)"),
        ("ix_books_price_desc", "coalesce(price, -1)"),
    ):
        op.create_index(name, "books", [sa.text(expression), "id"])
    if sqlite:
        for statement in SQLITE_SEARCH:
            op.execute(statement)
    else:
        op.create_index("ix_books_search", "books", ["search"], postgresql_using="gin")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE books_fts")
    op.drop_table("books")
    op.drop_table("refresh_tokens")
    op.drop_table("users")
