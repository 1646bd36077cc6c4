"""The registry of cached models. A model registers itself, so the cache imports no model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Column, Table

T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class CachedModel:
    """A registered model: the kind of its keys, and its primary key.

    lists: whether lists of its rows are cached as well.
    """

    kind: str
    key: Column[Any]
    lists: bool


CACHED_MODELS: dict[Table, CachedModel] = {}


def cached(kind: str, *, lists: bool = False) -> Callable[[type[T]], type[T]]:
    """Register a model, whose primary key is a single column; its rows get keys `<kind>:<id>`.

    From then on each write to its table invalidates what the cache holds of it.
    """

    def register(model: Any) -> Any:
        if any(other.kind == kind for other in CACHED_MODELS.values()):
            raise ValueError(f"Another model is registered as {kind!r}: choose another kind")
        table: Table = model.__table__
        (key,) = table.primary_key.columns
        CACHED_MODELS[table] = CachedModel(kind, key, lists)
        return model

    return register


def cached_model(kind: str) -> CachedModel:
    """Give the model of a kind. Raises LookupError: no write would invalidate its entries."""
    for model in CACHED_MODELS.values():
        if model.kind == kind:
            return model
    raise LookupError(f"No model is registered as {kind!r}: decorate it with @cached({kind!r})")
