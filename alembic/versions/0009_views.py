"""Index the views of books, and let no writer of books wait for a writer of views.

A foreign key would make them wait for each other: an insert of views locks the row of the book, and
the cascade of a deleted book locks its views. A trigger deletes the views in its place.
"""

import sqlalchemy as sa
from alembic import op

from service.db.alter_table import alter_table

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

FOREIGN_KEY = "fk_book_views_book_id_books"

POSTGRESQL = (
    # Views that are being written at this moment stay: they belong to no book, and no query of
    # views returns them.
    """CREATE FUNCTION delete_views() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM book_views WHERE book_id IN (
            SELECT v.book_id FROM book_views AS v JOIN deleted ON deleted.id = v.book_id
            FOR UPDATE OF v SKIP LOCKED
        );
        RETURN NULL;
    END $$""",
    """CREATE FUNCTION delete_all_views() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM book_views;
        RETURN NULL;
    END $$""",
    """CREATE TRIGGER books_deleted_views AFTER DELETE ON books
        REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION delete_views()""",
    """CREATE TRIGGER books_emptied_views AFTER TRUNCATE ON books
        FOR EACH STATEMENT EXECUTE FUNCTION delete_all_views()""",
)
SQLITE = """CREATE TRIGGER books_deleted_views AFTER DELETE ON books BEGIN
    DELETE FROM book_views WHERE book_id = old.id;
END"""


def upgrade() -> None:
    with alter_table("book_views") as batch:
        batch.drop_constraint(op.f(FOREIGN_KEY), type_="foreignkey")
    op.create_index("ix_book_views_views", "book_views", ["views", "book_id"])
    for statement in POSTGRESQL if op.get_bind().dialect.name == "postgresql" else (SQLITE,):
        op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for trigger in ("books_deleted_views", "books_emptied_views"):
            op.execute(f"DROP TRIGGER {trigger} ON books")
        for function in ("delete_views()", "delete_all_views()"):
            op.execute(f"DROP FUNCTION {function}")
    else:
        op.execute("DROP TRIGGER books_deleted_views")
    op.drop_index("ix_book_views_views", "book_views")
    views, books = sa.table("book_views", sa.column("book_id")), sa.table("books", sa.column("id"))
    op.execute(sa.delete(views).where(views.c.book_id.not_in(sa.select(books.c.id))))
    with alter_table("book_views") as batch:
        batch.create_foreign_key(
            op.f(FOREIGN_KEY), "books", ["book_id"], ["id"], ondelete="CASCADE"
        )
