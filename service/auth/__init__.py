"""Registration, sign-in and sign-out: routes, schemas, and rules with their SQL."""

from service.auth.routes import auth_bp

__all__ = ["auth_bp"]
