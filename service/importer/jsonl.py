"""Read records from JSON Lines: one object per line."""

import io
from functools import lru_cache

from service.http.parsing import parse_json
from service.importer.columns import ColumnMap, guess, pick
from service.importer.records import EXPORTED, TOO_LONG, Record, Records
from service.importer.sources import Lines, Source

MAX_CACHED_NAMES = 4_096  # characters: the columns of objects with longer names are not cached


def read_lines(stream: "io.BufferedReader[Source]", given: ColumnMap) -> Records:
    """Yield a record for each line that is not blank. given: the columns from `--map`."""

    @lru_cache(maxsize=256)
    def columns_of(names: tuple[str, ...]) -> ColumnMap:
        return guess(names, given)

    for line in Lines(stream):
        text = line.text.removeprefix(b"\xef\xbb\xbf") if line.number == 1 else line.text
        if not text.strip():
            continue
        damage, detail = TOO_LONG, ""
        if line.whole:
            try:
                values = parse_json(text)
            except ValueError as error:
                damage, detail = "not a JSON object", str(error).replace("The body", "The line")
            else:
                names = tuple(values)
                cacheable = sum(map(len, names)) <= MAX_CACHED_NAMES
                columns = columns_of(names) if cacheable else guess(names, given)
                is_export = [*names] == EXPORTED and not given
                yield Record(line.number, values, pick(values, columns), is_export=is_export)
                continue
        raw = text.decode("utf-8", "surrogateescape").rstrip("\r\n")
        yield Record(line.number, raw, damage=damage, detail=detail)
