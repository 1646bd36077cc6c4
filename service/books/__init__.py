"""Books: routes, schemas, and rules with their SQL."""

from service.books import bulk_routes
from service.books.routes import books_bp

__all__ = ["books_bp", "bulk_routes"]
