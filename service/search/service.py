"""The rules of the search, and its SQL.

A statement finds at most 1,000 books, the newest that match, and ranks them. If it finds none,
words are replaced by similar words that books have, and the statement runs again.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Float, Row, Select, Text, bindparam, column, func, select, text, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from service.books.service import BOOKS, OUTPUT_COLUMNS, TABLE
from service.cache import ListIds, ListQuery
from service.db.list_queries import LIMIT, OFFSET, Page
from service.models import Id
from service.models.search import any_of, query_of_any, similarity, trigrams, words

MIN_LENGTH = 4  # characters of a word that is replaced; the migration's triggers know it too
MAX_REPLACED = 8  # words of a search; a longer search is not repeated
MIN_INDEXED_PREFIX = 2  # characters of a prefix that PostgreSQL looks up in the index
MIN_SIMILARITY = 0.3  # of a word that replaces a word: as pg_trgm's operator %
MIN_SIMILARITY_KNOWN = 0.4  # of a word that replaces a word which books have, too
ALTERNATIVES = 5  # words that replace a word

# PostgreSQL finds the newest matches in one of two ways. For frequent words it reads the newest
# books until 1,000 match. For rare words the index gives all matches, and they are sorted. Among
# 1,000,000 books both cost the same for words in 1.25 % of them, so a probe of the newest 2,000
# books decides. The planner would decide by estimates: they are wrong for words that depend on each
# other and for prepared statements. `id + 0` keeps it from reading books in the order of ids, and
# IS TRUE keeps a short prefix from the index, which would read all words that begin so.
POSTGRESQL = """
    WITH probe AS MATERIALIZED (
        SELECT count(*) AS n FROM (SELECT search FROM books ORDER BY id DESC LIMIT 2000) AS newest
        WHERE search @@ CAST(:q AS tsquery)
    ), newest AS MATERIALIZED (
        SELECT id, search
        FROM (SELECT id, search FROM books ORDER BY id DESC LIMIT 120000) AS newest
        WHERE search @@ CAST(:q AS tsquery) AND (SELECT n FROM probe) >= 25 LIMIT 1000
    ), matching AS (
        SELECT id, search FROM newest WHERE (SELECT count(*) FROM newest) = 1000
        UNION ALL (
            SELECT id, search FROM books
            WHERE search @@ CAST(:indexed AS tsquery) AND (search @@ CAST(:q AS tsquery)) IS TRUE
                AND (SELECT count(*) FROM newest) < 1000
            ORDER BY id + 0 DESC LIMIT 1000
        )
    )
    SELECT id, ts_rank_cd(search, CAST(:any_of AS tsquery), 2) AS rank FROM matching"""
SQLITE = """
    SELECT rowid AS id, -bm25(books_fts, 1.0, 0.1) AS rank FROM books_fts
    WHERE books_fts MATCH :q ORDER BY rowid DESC LIMIT 1000"""
RANKED = {
    dialect: text(sql).columns(column("id", Id), column("rank", Float)).cte("ranked")
    for dialect, sql in (("postgresql", POSTGRESQL), ("sqlite", SQLITE))
}
HAS_TRIGRAMS = text("SELECT to_regprocedure('similarity(text, text)') IS NOT NULL")
# The 50 most similar words for each term, of those that are at most 3 characters shorter or longer.
# SQLite reads all words, in its own thread.
SIMILAR = {
    "postgresql": text("""
        SELECT term, near.word FROM unnest(:terms) AS term CROSS JOIN LATERAL (
            SELECT word FROM search_words
            WHERE word % term AND length(word) BETWEEN length(term) - 3 AND length(term) + 3
            ORDER BY similarity(word, term) DESC, word LIMIT 50
        ) AS near""").bindparams(bindparam("terms", type_=ARRAY(Text))),
    "sqlite": text("""
        SELECT term.key, near.word FROM json_each(:terms) AS term
        JOIN search_words AS near ON near.id IN (
            SELECT w.id FROM search_words AS w
            JOIN json_each(term.value) AS part ON instr('  ' || w.word || ' ', part.value)
            WHERE length(w.word) BETWEEN length(term.key) - 3 AND length(term.key) + 3
            GROUP BY w.id ORDER BY count(*) DESC, w.word LIMIT 50
        )"""),
}


def search_books(query: str, page: Page) -> ListQuery:
    """Return the ListQuery of a page of results. `more` of its result: the total, and `fuzzy`."""
    terms = words(query)

    async def find(db: AsyncSession, wanted: tuple[bool, bool]) -> ListIds:
        rows, more = await _search(db, terms, page, whole=False)
        return ListIds(tuple(row.id for row in rows), None, more)

    async def read_all(db: AsyncSession) -> tuple[list[bytes], int, list[Any]]:
        rows, more = await _search(db, terms, page, whole=True)
        return [BOOKS.write(row) for row in rows], 0, more

    conditions, part = {"search": " ".join(terms)}, [page.number, page.size]
    return ListQuery(BOOKS, conditions, part, counted=False, find=find, read_all=read_all)


async def _search(
    db: AsyncSession, terms: Sequence[str], page: Page, *, whole: bool
) -> tuple[list[Row[Any]], list[Any]]:
    """Return the rows of a page, with the total and `fuzzy`. whole: rows of books, else of ids."""
    dialect = db.get_bind().dialect.name
    statement = _page(dialect, whole)

    async def ranked(groups: Sequence[Sequence[str]]) -> tuple[list[Row[Any]], int]:
        q = query_of_any(groups, dialect)
        is_short = min(map(len, groups[-1])) < MIN_INDEXED_PREFIX and len(groups) > 1
        indexed = q.rpartition(" & ")[0] if is_short else q
        values = {"q": q, "any_of": any_of(q), "indexed": indexed, **page.bounds}
        rows = (await db.execute(statement, values)).all()
        return [row for row in rows if row.id is not None], rows[0].total

    rows, total = await ranked([[term] for term in terms])
    if total:
        return rows, [total, False]
    for groups in _replaced(terms, await _similar_words(db, terms, dialect)):
        rows, total = await ranked(groups)
        if total:
            return rows, [total, True]
    return [], [0, False]


@lru_cache
def _page(dialect: str, whole: bool) -> Select[Any]:
    """Return the statement of a page. A page without books is a row whose id is NULL."""
    ranked = RANKED[dialect]
    total = select(func.count().label("total")).select_from(ranked).subquery("counted")
    best = select(ranked).order_by(ranked.c.rank.desc(), ranked.c.id).limit(LIMIT).offset(OFFSET)
    page = best.subquery("page")
    source = total.outerjoin(page, true())
    if whole:
        source = source.outerjoin(TABLE, TABLE.c.id == page.c.id)
    selected = OUTPUT_COLUMNS if whole else [page.c.id]
    query = select(total.c.total, *selected).select_from(source)
    return query.order_by(page.c.rank.desc(), page.c.id)


async def _similar_words(
    db: AsyncSession, terms: Sequence[str], dialect: str
) -> Mapping[str, list[tuple[float, str]]]:
    """Return words of books that are similar to each term, with their similarity, best first."""
    long = {term for term in terms if len(term) >= MIN_LENGTH}
    if not long or len(terms) > MAX_REPLACED:
        return {}
    value: Any = sorted(long)
    if dialect == "sqlite":
        value = to_json({term: trigrams(term) for term in value}).decode()
    elif not await db.scalar(HAS_TRIGRAMS):
        return {}
    similar: dict[str, set[tuple[float, str]]] = {}
    for term, word in await db.execute(SIMILAR[dialect], {"terms": value}):
        if (near := similarity(term, word)) >= MIN_SIMILARITY:
            similar.setdefault(term, set()).add((-near, word))
    return {
        term: [(-near, word) for near, word in sorted(pairs)[:ALTERNATIVES]]
        for term, pairs in similar.items()
    }


def _replaced(
    terms: Sequence[str], similar: Mapping[str, list[tuple[float, str]]]
) -> Iterator[list[list[str]]]:
    """Yield searches with other words: first with the nearest words, then with all similar words.

    A word also stands for itself. The nearest word of a word that books have is this word.
    """
    for is_nearest in (True, False) if similar else ():
        groups = []
        for term in terms:
            pairs = similar.get(term, [])
            least = MIN_SIMILARITY_KNOWN if (1, term) in pairs else MIN_SIMILARITY
            if is_nearest and pairs:
                least = pairs[0][0]
            groups.append([term, *(word for near, word in pairs if near >= least and word != term)])
        yield groups
