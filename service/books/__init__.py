"""Books of the catalogue."""

from quart import Blueprint

books_bp = Blueprint("books", __name__, url_prefix="/api/books")

from service.books import routes
