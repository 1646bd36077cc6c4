"""Administration: users, their rights, and the cache."""

from service.admin.routes import admin_bp

__all__ = ["admin_bp"]
