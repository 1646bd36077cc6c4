"""Rows as JSON: one statement, and one parameter, for however many there are."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic_core import to_json
from sqlalchemy import (
    JSON,
    Dialect,
    FromClause,
    Integer,
    Text,
    bindparam,
    cast,
    column,
    func,
    select,
)
from sqlalchemy.types import TypeEngine

ORDER = "n"  # the column that tells which row is the first


class JsonRows:
    """A parameter that holds rows. types: of their columns; what else a row has is left out."""

    def __init__(self, parameter: str, types: Mapping[str, TypeEngine[Any]]) -> None:
        self._parameter = parameter
        self._types = types

    def write(self, rows: Sequence[Mapping[str, Any]], dialect: Dialect) -> dict[str, str]:
        """Give the parameter."""
        told = [{**row, ORDER: n} for n, row in enumerate(rows)]
        for name, type_ in self._types.items():
            if (process := _processor(type_, dialect)) is not None:
                for row in told:
                    row[name] = process(row[name])
        return {self._parameter: to_json(told).decode()}

    def read(self, dialect: str) -> FromClause:
        """Take the parameter for a table, within a statement."""
        told = bindparam(self._parameter, type_=Text)
        types = {ORDER: Integer(), **self._types}
        if dialect == "postgresql":
            columns = (column(name, type_) for name, type_ in types.items())
            rows = func.json_to_recordset(cast(told, JSON)).table_valued(*columns, name="given")
            return rows.render_derived(with_types=True)
        row = func.json_each(told).table_valued("value").c.value
        return select(
            *(func.json_extract(row, f"$.{name}").label(name) for name in types)
        ).subquery()


@lru_cache
def _processor(type_: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    """Give what makes a value into one that the database takes, if it has to be made."""
    return type_.dialect_impl(dialect).bind_processor(dialect)
