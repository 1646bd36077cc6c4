"""Pydantic schemas of registration, sign-in and tokens."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.http.schemas import Schema
from service.users.schemas import Email, GivenPassword, Password, Username


class Registration(Schema):
    """A new account."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"username": "anna", "email": "anna@example.org", "password": "correct horse"}
            ]
        }
    )

    username: Username
    email: Email
    password: Password


class Credentials(Schema):
    """E-mail and password. A malformed address counts as unknown, not as invalid input."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"email": "anna@example.org", "password": "correct horse"}]}
    )

    email: Annotated[str, Field(max_length=1_000)]
    password: GivenPassword


class Refresh(Schema):
    """A refresh token to exchange for a new pair."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"refresh_token": "pDVYOsmQZSnlLGcBRrEhzg"}]}
    )

    refresh_token: Annotated[str, Field(max_length=1_000)]


class TokenPair(BaseModel):
    """A new access token (valid for `expires_in` seconds), and its refresh token."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    token: str
    token_type: str = "Bearer"  # noqa: S105  (RFC 6750's name of the scheme)
    expires_in: int
    refresh_token: str
