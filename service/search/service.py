"""The rules of the search, and its SQL.

A statement finds at most 1,000 books, the newest that match, and ranks them. If it finds none,
words are replaced by similar words that books have, and the statement runs again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
MIN_SIMILARITY = 0.3  # of a word that replaces a word: as pg_trgm's operator %
MIN_SIMILARITY_KNOWN = 0.4  # of a word that replaces a word which books have, too
ALTERNATIVES = 5  # words that replace a word

# Each search for frequent words reads the newest books, until it has enough. For rare words this
# would read all books, so the index finds all that match, and these are sorted. A probe decides:
# the words are frequent if at least 20 of the newest 1,000 books match. So either way reads about
# 50,000 books at most, of 1,000,000. PostgreSQL's planner decides by estimates, which are wrong for
# words that depend on each other, and for the general plan of a prepared statement. `id + 0` keeps
# it from reading books in the order of ids.
POSTGRESQL = """
    WITH probe AS MATERIALIZED (
        SELECT count(*) AS n FROM (SELECT search FROM books ORDER BY id DESC LIMIT 1000) AS newest
        WHERE search @@ CAST(:q AS tsquery)
    ), newest AS MATERIALIZED (
        SELECT id, search
        FROM (SELECT id, search FROM books ORDER BY id DESC LIMIT 50000) AS newest
        WHERE search @@ CAST(:q AS tsquery) AND (SELECT n FROM probe) >= 20 LIMIT 1000
    ), matching AS (
        SELECT id, search FROM newest WHERE (SELECT count(*) FROM newest) = 1000
        UNION ALL (
            SELECT id, search FROM books
            WHERE search @@ CAST(:q AS tsquery) AND (SELECT count(*) FROM newest) < 1000
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
SIMILAR = {
    "postgresql": text("""
        SELECT term, near.word FROM unnest(:terms) AS term CROSS JOIN LATERAL (
            SELECT word FROM search_words WHERE word % term
            ORDER BY similarity(word, term) DESC, word LIMIT 50
        ) AS near""").bindparams(bindparam("terms", type_=ARRAY(Text))),
    "sqlite": text("""
        SELECT term.key, search_words.word FROM json_each(:terms) AS term JOIN search_words
        ON search_words.id IN (
            SELECT rowid FROM books_fts_trigrams WHERE books_fts_trigrams MATCH term.value
            ORDER BY rank LIMIT 50
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

    async def ranked(groups: Sequence[Iterable[str]]) -> tuple[list[Row[Any]], int]:
        q = query_of_any(groups, dialect)
        values = {"q": q, "any_of": any_of(q), **page.bounds}
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
        matches = {t: " OR ".join(f'"{part}"' for part in dict.fromkeys(trigrams(t))) for t in long}
        value = to_json(matches).decode()
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
