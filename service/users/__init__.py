"""Users: public data, the caller's profile, a user's books."""

from service.users.routes import users_bp

__all__ = ["users_bp"]
