"""Search: ranked full text over titles and authors, with a second try for misspelt words."""

from service.search.routes import search_bp

__all__ = ["search_bp"]
