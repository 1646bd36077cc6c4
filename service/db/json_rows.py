"""Pass any number of rows to one statement, as one JSON parameter."""

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

ORDER = "n"  # the column with the index of each row


class JsonRows:
    """A parameter that holds rows. types: columns and their types; other keys are ignored."""

    def __init__(self, parameter: str, types: Mapping[str, TypeEngine[Any]]) -> None:
        self._parameter = parameter
        self._types = types

    def write(self, rows: Sequence[Mapping[str, Any]], dialect: Dialect) -> dict[str, str]:
        """Return the parameter's name and value, for `execute`."""
        numbered = [{**row, ORDER: n} for n, row in enumerate(rows)]
        for name, type_ in self._types.items():
            if (process := _processor(type_, dialect)) is not None:
                for row in numbered:
                    row[name] = process(row[name])
        return {self._parameter: to_json(numbered).decode()}

    def read(self, dialect: str) -> FromClause:
        """Return the parameter as a table with the columns `types` and ORDER, for a statement."""
        parameter = bindparam(self._parameter, type_=Text)
        types = {ORDER: Integer(), **self._types}
        if dialect == "postgresql":
            columns = (column(name, type_) for name, type_ in types.items())
            rows = func.json_to_recordset(cast(parameter, JSON)).table_valued(
                *columns, name="given"
            )
            return rows.render_derived(with_types=True)
        row = func.json_each(parameter).table_valued("value").c.value
        return select(
            *(func.json_extract(row, f"$.{name}").label(name) for name in types)
        ).subquery()


@lru_cache
def _processor(type_: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    """Return the function that converts a value for the database, if conversion is needed."""
    return type_.dialect_impl(dialect).bind_processor(dialect)
