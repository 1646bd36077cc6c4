"""Users: public data, own profile, own books."""

from service.users.routes import users_bp

__all__ = ["users_bp"]
