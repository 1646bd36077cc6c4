"""Pydantic schemas of administration in requests and responses."""

from pydantic import BaseModel, ConfigDict, Field

from service.http.schemas import Schema
from service.users.schemas import Tier


class Message(BaseModel):
    """A sentence about the completed action."""

    message: str


class RightsUpdate(Schema):
    """A change of a user's rights: absent fields keep their value."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tier": "premium"}]})

    tier: Tier = Field(default_factory=lambda: "free")
    is_admin: bool = Field(default_factory=bool)
