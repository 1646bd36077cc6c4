"""Sparse representations: the query parameter `fields` selects members of a resource.

A sparse body is made from the whole body, which the cache holds. Its ETag is the hash of its own
bytes, as that of any other body.
"""

from collections.abc import Collection, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json, to_json


def read_fields(model: type[BaseModel], value: Any) -> Any:
    """Return the fields that the parameter selects, in the order of the model. Validates text.

    Raises ValueError, which names the allowed fields, for an unknown or an empty name.
    """
    if not isinstance(value, str):
        return value
    names = set(value.split(","))
    if not names <= model.model_fields.keys():
        raise ValueError(f"Must be some of: {', '.join(model.model_fields)}; comma-separated.")
    return tuple(name for name in model.model_fields if name in names)


def fields_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of the parameter for a model."""
    name = f"({'|'.join(model.model_fields)})"
    return {"type": "string", "pattern": f"^{name}(,{name})*$"}


def select_fields(bodies: Sequence[bytes], names: Collection[str] | None) -> Sequence[bytes]:
    """Return JSON objects with only the members `names`, in this order. None: all members.

    Numbers keep their digits, because pydantic wrote them from the same floats.
    """
    if names is None:
        return bodies
    objects = map(from_json, bodies)
    return [to_json({name: members[name] for name in names}) for members in objects]
