"""Bulk requests: validate each item alone, and respond with a result for each item.

An item passes through several steps. A step replaces an item that it refuses by an ItemError, and
leaves an ItemError as it is, so that the results are in the order of the items.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json

from service.errors import APIError, InvalidInputError, Messages, short_name
from service.http.operations import Reply
from service.http.schemas import Int64, QueryBoolean, Schema, messages
from service.slices import in_slices

MAX_ITEMS = 500  # of a request
MAX_FIELDS = 20  # with errors, in the result of an item
ModelT = TypeVar("ModelT", bound=BaseModel)


class ItemError(NamedTuple):
    """The reason why an item has no effect. status: HTTP status. errors: messages by field."""

    status: int
    errors: Messages

    @classmethod
    def of(cls, error: APIError) -> "ItemError":
        """Make the error of an item from the error of a request for this item alone."""
        return cls(error.status_code, error.payload.get("errors", {"_schema": [error.message]}))


class ItemDone(NamedTuple):
    """The effect of an item. status: HTTP status. id, version: of the row."""

    status: int
    id: int
    version: int


class BulkQuery(Schema):
    """The query of a bulk request."""

    atomic: QueryBoolean = Field(
        False, description="`true`: all items, or none if one of them is refused"
    )


class DoneResult(BaseModel):
    """An item that has its effect. `status` is that of a request for this item alone."""

    index: int = Field(description="position of the item in the request, from 0")
    status: int
    id: Int64
    version: Int64 = Field(description="of the book; of a deleted book, the last one")


class RefusedResult(BaseModel):
    """An item that has no effect. `status` is that of a request for this item alone."""

    index: int = Field(description="position of the item in the request, from 0")
    status: int
    errors: Messages = Field(description="sentences by field; `_schema`: of the item itself")


class BulkResults(BaseModel):
    """The results of a bulk request, in the order of its items."""

    results: list[DoneResult | RefusedResult]


async def validate_each(
    model: type[ModelT], items: Sequence[Any], check: Callable[[ModelT], None] | None = None
) -> list[ModelT | ItemError]:
    """Validate each item alone. check: raises InvalidInputError for a further rule."""
    return [_validate(model, item, check) async for item in in_slices(items)]


def _validate(
    model: type[ModelT], item: Any, check: Callable[[ModelT], None] | None
) -> ModelT | ItemError:
    try:
        valid = model.model_validate(item)
        if check is not None:
            check(valid)
    except ValidationError as error:
        fields = islice(messages(error).items(), MAX_FIELDS)
        return ItemError(400, {short_name(name): sentences for name, sentences in fields})
    except InvalidInputError as error:
        return ItemError.of(error)
    return valid


def refuse_repeated(items: Iterable[Any]) -> list[Any]:
    """Refuse items with the `id` of an earlier item."""
    ids: set[int] = set()
    checked: list[Any] = []
    for item in items:
        if not isinstance(item, ItemError):
            if item.id in ids:
                item = ItemError(400, {"id": ["Given more than once."]})
            else:
                ids.add(item.id)
        checked.append(item)
    return checked


def require_all(items: Iterable[Any]) -> None:
    """Raise InvalidInputError with the errors of all items, if there are any."""
    errors = {
        f"items.{index}" if field == "_schema" else f"items.{index}.{field}": sentences
        for index, item in enumerate(items)
        if isinstance(item, ItemError)
        for field, sentences in item.errors.items()
    }
    if errors:
        raise InvalidInputError(errors)


def bulk_reply(outcomes: Sequence[ItemDone | ItemError], status: int) -> Reply:
    """Make the reply with the result of each item. status: of the response."""
    results = [{"index": n, **outcome._asdict()} for n, outcome in enumerate(outcomes)]
    return Reply(to_json({"results": results}), status)
