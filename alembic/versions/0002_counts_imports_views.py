"""Create the counts of books (maintained by triggers), imported records, and views of books."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Each writer changes a row that no other writer has locked, or inserts a row, so no writer waits. A
# genre has at most as many rows as it had concurrent writers. The sum is exact in every snapshot.
POSTGRESQL = (
    """CREATE FUNCTION count_books(of_genre text, more bigint) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE free bigint;
    BEGIN
        SELECT id INTO free FROM book_counts WHERE genre = of_genre
            LIMIT 1 FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            UPDATE book_counts SET n = n + more WHERE id = free;
        ELSE
            INSERT INTO book_counts (genre, n) VALUES (of_genre, more);
        END IF;
    END $$""",
    """CREATE FUNCTION books_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM count_books(genre, n)
            FROM (SELECT coalesce(genre, '') AS genre, count(*) AS n FROM changed GROUP BY 1) AS c;
        RETURN NULL;
    END $$""",
    """CREATE FUNCTION books_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM count_books(genre, -n)
            FROM (SELECT coalesce(genre, '') AS genre, count(*) AS n FROM changed GROUP BY 1) AS c;
        RETURN NULL;
    END $$""",
    """CREATE FUNCTION books_moved() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM count_books(genre, n) FROM (
            SELECT coalesce(genre, '') AS genre, sum(one) AS n FROM (
                SELECT genre, 1 AS one FROM changed UNION ALL SELECT genre, -1 FROM former
            ) AS rows GROUP BY 1 HAVING sum(one) <> 0
        ) AS c;
        RETURN NULL;
    END $$""",
    """CREATE FUNCTION books_emptied() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM book_counts;
        RETURN NULL;
    END $$""",
    # FOR EACH STATEMENT, not for each row: an import changes a count once for a thousand books.
    """CREATE TRIGGER books_inserted AFTER INSERT ON books
        REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION books_inserted()""",
    """CREATE TRIGGER books_deleted AFTER DELETE ON books
        REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION books_deleted()""",
    """CREATE TRIGGER books_moved AFTER UPDATE ON books
        REFERENCING OLD TABLE AS former NEW TABLE AS changed
        FOR EACH STATEMENT EXECUTE FUNCTION books_moved()""",
    """CREATE TRIGGER books_emptied AFTER TRUNCATE ON books
        FOR EACH STATEMENT EXECUTE FUNCTION books_emptied()""",
    """INSERT INTO book_counts (genre, n)
        SELECT coalesce(genre, ''), count(*) FROM books GROUP BY 1""",
)
POSTGRESQL_FUNCTIONS = (
    "books_inserted()", "books_deleted()", "books_moved()", "books_emptied()",
    "count_books(text, bigint)",
)  # fmt: skip

# SQLite has one writer at a time, so each genre needs only one row.
SQLITE = (
    """INSERT INTO book_counts (genre, n)
        SELECT g.column1, (SELECT count(*) FROM books WHERE coalesce(genre, '') = g.column1)
        FROM (VALUES (''), ('Fiction'), ('Non-Fiction'), ('Science'), ('History')) AS g""",
    """CREATE TRIGGER books_inserted AFTER INSERT ON books BEGIN
        UPDATE book_counts SET n = n + 1 WHERE genre = coalesce(new.genre, '');
    END""",
    """CREATE TRIGGER books_deleted AFTER DELETE ON books BEGIN
        UPDATE book_counts SET n = n - 1 WHERE genre = coalesce(old.genre, '');
    END""",
    """CREATE TRIGGER books_moved AFTER UPDATE OF genre ON books
        WHEN old.genre IS NOT new.genre BEGIN
        UPDATE book_counts SET n = n - 1 WHERE genre = coalesce(old.genre, '');
        UPDATE book_counts SET n = n + 1 WHERE genre = coalesce(new.genre, '');
    END""",
)
TRIGGERS = ("books_inserted", "books_deleted", "books_moved")


SORT_KEYS = (
    ("ix_books_year_asc", "published_year", "9999"),
    ("ix_books_year_desc", "published_year", "-1"),
    ("ix_books_price_asc", "price", "10000000000"),
    ("ix_books_price_desc", "price", "-1"),
)


def index_sort_keys(*, with_column: bool) -> None:
    """Create PostgreSQL's indexes of sort keys again, with or without INCLUDE of the column."""
    for name, column, sentinel in SORT_KEYS:
        op.drop_index(name, "books")
        key = sa.text(f"coalesce({column}, {sentinel})")
        op.create_index(
            name, "books", [key, "id"], postgresql_include=[column] if with_column else []
        )


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.create_table(
        "book_counts",
        sa.Column("id", ID, nullable=False),
        sa.Column("genre", sa.Text(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_book_counts"),
    )
    op.create_table(
        "imported_records",
        sa.Column("book_id", ID, nullable=False),
        sa.Column("digest", sa.LargeBinary(16), nullable=False),
        sa.PrimaryKeyConstraint("book_id", name="pk_imported_records"),
        sa.UniqueConstraint("digest", name="uq_imported_records_digest"),
        sa.ForeignKeyConstraint(
            ["book_id"], ["books.id"], name="fk_imported_records_book_id_books", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "book_views",
        sa.Column("book_id", ID, nullable=False),
        sa.Column("views", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("book_id", name="pk_book_views"),
        sa.ForeignKeyConstraint(
            ["book_id"], ["books.id"], name="fk_book_views_book_id_books", ondelete="CASCADE"
        ),
        sa.CheckConstraint("views >= 0", name=op.f("ck_book_views_views")),
    )
    for statement in SQLITE if sqlite else POSTGRESQL:
        op.execute(statement)
    if not sqlite:
        index_sort_keys(with_column=True)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for trigger in TRIGGERS:
            op.execute(f"DROP TRIGGER {trigger}")
    else:
        for trigger in (*TRIGGERS, "books_emptied"):
            op.execute(f"DROP TRIGGER {trigger} ON books")
        for function in POSTGRESQL_FUNCTIONS:
            op.execute(f"DROP FUNCTION {function}")
        index_sort_keys(with_column=False)
    op.drop_table("book_views")
    op.drop_table("imported_records")
    op.drop_table("book_counts")
