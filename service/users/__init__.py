"""People: their public face, their own profile, their books."""

from quart import Blueprint

users_bp = Blueprint("users", __name__, url_prefix="/api")

from service.users import routes
