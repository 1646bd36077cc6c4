"""Users: public data, own profile, own books."""

from quart import Blueprint

users_bp = Blueprint("users", __name__, url_prefix="/api")

from service.users import routes
