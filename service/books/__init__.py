"""Books of the catalogue."""

from service.books.routes import books_bp

__all__ = ["books_bp"]
