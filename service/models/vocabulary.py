"""The table of the words in titles and authors, in which a search finds similar words."""

from sqlalchemy import Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.models.catalogue import Base, Id


class SearchWord(Base):
    """A word of four or more characters that a title or an author has, or once had.

    Triggers on `books` add words. A word may have several rows, so that writers do not wait for
    each other.
    """

    __tablename__ = "search_words"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    word: Mapped[str] = mapped_column(Text().with_variant(Text(collation="C"), "postgresql"))


Index("ix_search_words_word", SearchWord.word)
# SQLite has no index of trigrams: a search for similar words reads all words.
Index(
    "ix_search_words_trigrams",
    SearchWord.word,
    postgresql_using="gin",
    postgresql_ops={"word": "gin_trgm_ops"},
).ddl_if(dialect="postgresql")
