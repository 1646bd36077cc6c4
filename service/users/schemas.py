"""Pydantic schemas of users in requests and responses. No response contains a password."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    EmailStr,
    Field,
    StringConstraints,
)
from typing_extensions import TypeAliasType

from service.http.pagination import Links, Pagination
from service.http.schemas import Instant, Int64, Schema
from service.security.usernames import check_name

MAX_EMAIL = 254  # characters (RFC 5321)


def _bare_address(value: Any) -> Any:
    """Refuse `Anna <anna@example.org>`, from which pydantic would extract the address.

    Also refuse values over MAX_EMAIL early: email-validator scans each character several times.
    """
    if isinstance(value, str) and ("<" in value or len(value.strip()) > MAX_EMAIL):
        raise ValueError("Not a valid email address.")
    return value


Username = Annotated[str, Field(min_length=3, max_length=50), AfterValidator(check_name)]
Email = Annotated[EmailStr, BeforeValidator(_bare_address), Field(max_length=MAX_EMAIL)]
Password = Annotated[  # blanks at the ends are part of the password
    str, StringConstraints(strip_whitespace=False, min_length=8, max_length=128)
]
GivenPassword = Annotated[str, StringConstraints(strip_whitespace=False, max_length=128)]
# A TypeAliasType is a named schema in the OpenAPI document.
Tier = TypeAliasType("Tier", Literal["free", "standard", "premium", "service"])


class ProfileUpdate(Schema):
    """A change of the caller's account: absent fields keep their value."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"username": "anna_b"}]})

    username: Username = Field(default_factory=str)
    email: Email = Field(default_factory=str)
    password: Password = Field(default_factory=str)
    current_password: GivenPassword | None = Field(
        None, description="needed for a new email or password"
    )

    @property
    def needs_password(self) -> bool:
        """Whether the change includes the email or the password."""
        return not self.model_fields_set.isdisjoint({"email", "password"})


class PublicUser(BaseModel):
    """The public data of a user."""

    model_config = ConfigDict(from_attributes=True)

    id: Int64
    username: str
    created_at: Instant


class UserOut(BaseModel):
    """The data of a user for the user and for administrators."""

    model_config = ConfigDict(from_attributes=True, title="User")

    id: Int64
    username: str
    email: str
    tier: Tier
    is_admin: bool
    created_at: Instant


class UserPage(BaseModel):
    """A page of users, newest first."""

    items: list[UserOut]
    total: Int64
    pagination: Pagination
    links: Links
