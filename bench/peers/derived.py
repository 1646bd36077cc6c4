"""The derived columns of a book, as Octavo's schema requires them."""

import re
import unicodedata

WORD = re.compile("[a-z0-9]+")


def author_key(author: str) -> str:
    """Return the form of an author for case-insensitive comparison."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", author).casefold())


def search_words(title: str, author: str) -> str:
    """Return the search words of a book, in the text form of a tsvector."""
    titles = words(title)
    parts = [f"{word}:{n}A" for n, word in enumerate(titles, 1)]
    parts += [f"{word}:{n}" for n, word in enumerate(words(author), len(titles) + 1)]
    return " ".join(parts)


def words(text: str) -> list[str]:
    """Split a text into words for the search."""
    if text.isascii():
        return WORD.findall(text.lower())
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    letters = "".join(c for c in text if not unicodedata.combining(c))
    return "".join(c if c.isalnum() else " " for c in letters).split()
