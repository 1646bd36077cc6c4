"""Reviews of books: a resource that is added to Octavo from outside."""

from quart import Blueprint

reviews_bp = Blueprint("reviews", __name__, url_prefix="/api/books/<id:book_id>/reviews")

from tests.examples.reviews import routes
