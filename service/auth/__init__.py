"""Signing in and out."""

from service.auth.routes import auth_bp

__all__ = ["auth_bp"]
