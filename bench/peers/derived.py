"""The columns of a book that follow from others, as Octavo's schema wants them."""

import re
import unicodedata

WORD = re.compile("[a-z0-9]+")


def author_key(author: str) -> str:
    """Give the form in which authors are compared without case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", author).casefold())


def search_words(title: str, author: str) -> str:
    """Give the words that a book is found by, as a tsvector is written."""
    text = f"{title} {author}"
    if text.isascii():
        return " ".join(WORD.findall(text.lower()))
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    kept = "".join(c for c in text if not unicodedata.combining(c))
    return " ".join("".join(c if c.isalnum() else " " for c in kept).split())
