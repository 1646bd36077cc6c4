"""Tell the words of titles from those of authors, for ranks, and create the table of all words.

On PostgreSQL the words get positions and weights. On SQLite the FTS5 table gets two columns.
"""

import json
import logging
from typing import Any

import sqlalchemy as sa
from alembic import op

from service.models.search import book_words, tsvector_of

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WORD = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BATCH_SIZE = 5_000  # books

log = logging.getLogger("alembic.runtime.migration")
BATCH = sa.text("SELECT id, title, author FROM books WHERE id > :last ORDER BY id LIMIT :limit")
WRITE = {
    "postgresql": sa.text("""UPDATE books SET search = new.search::tsvector
        FROM json_to_recordset(CAST(:rows AS json)) AS new (id bigint, search text)
        WHERE books.id = new.id"""),
    "sqlite": sa.text("""UPDATE books SET search = json_extract(new.value, '$.search')
        FROM json_each(:rows) AS new WHERE books.id = json_extract(new.value, '$.id')"""),
}

POSTGRESQL = (
    # The word has no unique index: a writer would wait for another writer of the same new word.
    """CREATE FUNCTION add_search_words(words text[]) RETURNS void LANGUAGE sql AS $$
        INSERT INTO search_words (word)
            SELECT DISTINCT w FROM unnest(words) AS w WHERE length(w) >= 4
                AND NOT EXISTS (SELECT FROM search_words AS s WHERE s.word = w COLLATE "C")
    $$""",
    """CREATE FUNCTION books_worded() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM add_search_words(ARRAY(SELECT unnest(tsvector_to_array(search)) FROM changed));
        RETURN NULL;
    END $$""",
    """CREATE FUNCTION books_reworded() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM add_search_words(tsvector_to_array(NEW.search));
        RETURN NULL;
    END $$""",
    """CREATE TRIGGER books_worded AFTER INSERT ON books
        REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION books_worded()""",
    """CREATE TRIGGER books_reworded AFTER UPDATE OF search ON books
        FOR EACH ROW EXECUTE FUNCTION books_reworded()""",
    """INSERT INTO search_words (word)
        SELECT word FROM ts_stat('SELECT search FROM books') WHERE length(word) >= 4""",
)
POSTGRESQL_FUNCTIONS = ("books_worded()", "books_reworded()", "add_search_words(text[])")

# The two lines of a value of `search`, and the words in it as an array of JSON.
TITLE = "substr({0}.search, 1, instr({0}.search || char(10), char(10)) - 1)"
AUTHOR = "substr({0}.search, instr({0}.search || char(10), char(10)) + 1)"
ADD_WORDS = """INSERT INTO search_words (word)
    SELECT DISTINCT value FROM json_each(
        '["' || replace(replace(new.search, char(10), ' '), ' ', '","') || '"]')
    WHERE length(value) >= 4 AND NOT EXISTS (SELECT 1 FROM search_words WHERE word = value)"""
INDEX_NEW = f"""INSERT INTO books_fts(rowid, title, author)
    VALUES (new.id, {TITLE.format("new")}, {AUTHOR.format("new")})"""  # noqa: S608  (no input)
INDEX_OLD = f"""INSERT INTO books_fts(books_fts, rowid, title, author)
    VALUES ('delete', old.id, {TITLE.format("old")}, {AUTHOR.format("old")})"""  # noqa: S608  (no input)
SQLITE = (
    f"""CREATE VIEW books_words AS SELECT id, {TITLE.format("books")} AS title,
        {AUTHOR.format("books")} AS author FROM books""",  # noqa: S608  (no input)
    """CREATE VIRTUAL TABLE books_fts USING fts5(
        title, author, content='books_words', content_rowid='id',
        tokenize='unicode61 remove_diacritics 0', prefix='2 3')""",
    "INSERT INTO books_fts(books_fts) VALUES ('rebuild')",
    f"CREATE TRIGGER books_fts_insert AFTER INSERT ON books BEGIN {INDEX_NEW}; END",
    f"CREATE TRIGGER books_fts_delete AFTER DELETE ON books BEGIN {INDEX_OLD}; END",
    f"""CREATE TRIGGER books_fts_update AFTER UPDATE OF search ON books BEGIN
        {INDEX_OLD}; {INDEX_NEW};
    END""",
    "CREATE VIRTUAL TABLE temp.terms USING fts5vocab('main', 'books_fts', 'row')",
    "INSERT INTO search_words (word) SELECT term FROM temp.terms WHERE length(term) >= 4",
    "DROP TABLE temp.terms",
    f"CREATE TRIGGER books_worded AFTER INSERT ON books BEGIN {ADD_WORDS}; END",
    f"CREATE TRIGGER books_reworded AFTER UPDATE OF search ON books BEGIN {ADD_WORDS}; END",
)
SQLITE_TRIGGERS = (
    "books_fts_insert", "books_fts_delete", "books_fts_update", "books_worded", "books_reworded",
)  # fmt: skip
# As the first migration has created them.
SQLITE_BEFORE = (
    """CREATE VIRTUAL TABLE books_fts USING fts5(
        search, content='books', content_rowid='id',
        tokenize='unicode61 remove_diacritics 0', prefix='2 3')""",
    "INSERT INTO books_fts(books_fts) VALUES ('rebuild')",
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


def rewrite_words(db: sa.Connection) -> None:
    """Write the words of every book again, in batches."""
    dialect, last = db.dialect.name, 0
    while rows := db.execute(BATCH, {"last": last, "limit": BATCH_SIZE}).all():
        new: list[dict[str, Any]] = []
        for book_id, title, author in rows:
            search = book_words(title, author)
            is_postgresql = dialect == "postgresql"
            new.append({"id": book_id, "search": tsvector_of(search) if is_postgresql else search})
        db.execute(WRITE[dialect], {"rows": json.dumps(new)})
        last = rows[-1].id


def index_trigrams(db: sa.Connection) -> None:
    """Create PostgreSQL's index of similar words, if the extension pg_trgm can be had."""
    try:
        with db.begin_nested():
            op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            op.create_index(
                "ix_search_words_trigrams",
                "search_words",
                ["word"],
                postgresql_using="gin",
                postgresql_ops={"word": "gin_trgm_ops"},
            )
    except sa.exc.DBAPIError as error:
        log.warning("Searches find no similar words, because pg_trgm is missing: %s", error.orig)


def upgrade() -> None:
    db = op.get_bind()
    sqlite = db.dialect.name == "sqlite"
    if sqlite:
        for trigger in SQLITE_TRIGGERS[:3]:
            op.execute(f"DROP TRIGGER {trigger}")
        op.execute("DROP TABLE books_fts")
        rewrite_words(db)
    else:
        op.execute("LOCK TABLE books IN SHARE ROW EXCLUSIVE MODE")
        op.drop_index("ix_books_search", "books")
        rewrite_words(db)
        op.create_index("ix_books_search", "books", ["search"], postgresql_using="gin")
    op.create_table(
        "search_words",
        sa.Column("id", ID, nullable=False),
        sa.Column("word", WORD, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_search_words"),
    )
    op.create_index("ix_search_words_word", "search_words", ["word"])
    for statement in SQLITE if sqlite else POSTGRESQL:
        op.execute(statement)
    if not sqlite:
        index_trigrams(db)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for trigger in SQLITE_TRIGGERS:
            op.execute(f"DROP TRIGGER {trigger}")
        op.drop_table("search_words")
        op.execute("DROP TABLE books_fts")
        op.execute("DROP VIEW books_words")
        op.execute("UPDATE books SET search = trim(replace(search, char(10), ' '))")
        for statement in SQLITE_BEFORE:
            op.execute(statement)
        return
    for trigger in ("books_worded", "books_reworded"):
        op.execute(f"DROP TRIGGER {trigger} ON books")
    for function in POSTGRESQL_FUNCTIONS:
        op.execute(f"DROP FUNCTION {function}")
    op.drop_table("search_words")  # the extension stays: other tables may use it
    op.execute("UPDATE books SET search = strip(search)")
