"""Reviews of books: a resource that is added to Octavo from outside."""

from tests.examples.reviews.routes import reviews_bp

__all__ = ["reviews_bp"]
