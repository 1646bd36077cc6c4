"""Signing in and out."""

from quart import Blueprint

auth_bp = Blueprint("auth", __name__, url_prefix="/api/auth")

from service.auth import routes
