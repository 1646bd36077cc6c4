"""The registry of cached models. Models register themselves, so the cache imports no models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Column, Table

T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class CachedModel:
    """A registered model. kind: prefix of its cache keys. key: its primary key column.

    lists: whether lists of its rows are cached as well.
    """

    kind: str
    key: Column[Any]
    lists: bool


CACHED_MODELS: dict[Table, CachedModel] = {}


def cached(kind: str, *, lists: bool = False) -> Callable[[type[T]], type[T]]:
    """Register a model, whose primary key is one column. Cache keys of its rows: `<kind>:<id>`.

    From then on each write to its table invalidates its cache entries. Raises ValueError if the
    kind is in use.
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
    """Return the model of a kind. Raises LookupError if no model is registered for the kind."""
    for model in CACHED_MODELS.values():
        if model.kind == kind:
            return model
    raise LookupError(f"No model is registered as {kind!r}: decorate it with @cached({kind!r})")
