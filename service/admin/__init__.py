"""Administration: users' rights and the cache."""

from quart import Blueprint

admin_bp = Blueprint("admin", __name__, url_prefix="/admin")

from service.admin import routes
