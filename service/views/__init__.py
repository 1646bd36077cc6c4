"""Views of books: counted in memory, written in batches, and the most viewed books."""

from service.views.routes import views_bp

__all__ = ["views_bp"]
