"""Administration, on the wire."""

from pydantic import BaseModel, ConfigDict, Field

from service.users.schemas import Tier
from service.validation import Schema


class Message(BaseModel):
    """What was done, in a sentence."""

    message: str


class RightsUpdate(Schema):
    """A change of what a user may do: absent fields keep their value."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tier": "premium"}]})

    tier: Tier = Field(default_factory=lambda: "free")
    is_admin: bool = Field(default_factory=bool)
