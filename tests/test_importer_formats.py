"""File formats: CSV, JSON Lines and MARC 21, plain and gzip, valid and damaged."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pymarc import Field, Indicators, Subfield
from pymarc import Record as MarcRecord

from service.importer import csv_table, sources
from service.importer.columns import parse_map
from service.importer.importer import open_reading
from service.importer.normalise import Accepted, Refused, validate_record
from service.importer.sources import SourceError

DAMAGED = "quotes do not fit"
MISFIT = "columns do not fit the header"
Verdicts = list[tuple[int, Accepted | Refused]]


def read(
    folder: Path, data: bytes | str, name: str = "books.csv", *, encoding: str | None = None,
    columns: str = "",
) -> Verdicts:  # fmt: skip
    """Judge each record of a file. Give its number and its verdict."""
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    given = parse_map(columns) if columns else {}
    with open_reading(str(path), None, encoding, given) as reading:
        return [(record.number, validate_record(record)) for record in reading.records]


def titles(verdicts: Verdicts) -> list[str]:
    """Give the titles of the accepted books."""
    return [verdict.book.title for _, verdict in verdicts if isinstance(verdict, Accepted)]


def reasons(verdicts: Verdicts) -> list[tuple[int, str]]:
    """Give the numbers of the refused records, and the reasons."""
    return [
        (number, verdict.reason) for number, verdict in verdicts if isinstance(verdict, Refused)
    ]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_delimiter_is_detected_in_the_header(tmp_path: Path, mark: str) -> None:
    table = f'Book Title{mark}"No{mark}te"{mark}Author Name{mark}PRICE\nT{mark}x{mark}A{mark}9.5\n'
    ((number, verdict),) = read(tmp_path, table)
    assert isinstance(verdict, Accepted)
    assert (number, verdict.book.title, verdict.book.author) == (2, "T", "A")
    assert str(verdict.book.price) == "9.50"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_each_line_end_is_understood(tmp_path: Path, end: str) -> None:
    table = end.join(["title,author", '"Two', 'lines",A', "", "U,B"])
    verdicts = read(tmp_path, table)
    assert titles(verdicts) == [f"Two{end}lines", "U"]
    assert [number for number, _ in verdicts] == [2, 5]


@pytest.mark.parametrize(
    ("encoding", "option"),
    [
        ("utf-8", None),
        ("utf-8-sig", "utf-8"),
        ("utf-8-sig", None),
        ("utf-16", None),
        ("latin-1", "latin-1"),
    ],
)
def test_encodings_are_detected_or_given(tmp_path: Path, encoding: str, option: str | None) -> None:
    verdicts = read(tmp_path, "title,author\nÉté,Ö\n".encode(encoding), encoding=option)
    assert titles(verdicts) == ["Été"]


@pytest.mark.parametrize("name", ["klingon", "base64"])
def test_an_unknown_encoding_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=f"no encoding {name}"):
        read(tmp_path, "title,author\n", encoding=name)


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_half_a_surrogate_pair_refuses_its_record_alone(tmp_path: Path, order: str) -> None:
    table = "\ufefftitle,author\nA,x\nB\ud83d,x\nC,x\n".encode(order, "surrogatepass")
    verdicts = read(tmp_path, table)
    assert titles(verdicts) == ["A", "C"]
    assert [number for number, _ in reasons(verdicts)] == [3]


def test_invalid_utf8_refuses_its_record_alone(tmp_path: Path) -> None:
    table = b"title,author,note\nA,A,\xff\nB\xff,A,\nC,A,\xc3\xa9\n"
    verdicts = read(tmp_path, table)
    assert titles(verdicts) == ["A", "C"]
    assert reasons(verdicts) == [(3, "title: Holds a NUL character or bytes that are not text.")]


@pytest.mark.parametrize(
    ("rows", "accepted", "refused"),
    [
        ('A,x\n"B,x\nC,x\nD,x\n', "ACD", [(3, DAMAGED)]),
        ('A,x\n"B"y,x\nC,x\n', "AC", [(3, DAMAGED)]),
        ('A,x\nB "b" b,x\nC,x\n', ["A", 'B "b" b', "C"], []),
        ('A,x\n"B ""b""",x\nC,x\n', ["A", 'B "b"', "C"], []),
        ("A,x\nB\nC,x\n", "AC", [(3, MISFIT)]),
        ("A,x\nB,x,y\nC,x\n", "AC", [(3, MISFIT)]),
        ("A,x\nB,x,\nC,x\n", "AC", [(3, MISFIT)]),
        ('A,"B,x\nC,x\nD,x\nE 15",x\nF,x\n', ["C", "D", 'E 15"', "F"], [(2, DAMAGED)]),
        ('A,"B,x\nD 15"\nF,x\n', "F", [(2, DAMAGED), (3, MISFIT)]),
        ('A,x\n"B,x\n' + "C,x\n" * 2_000, ["A", *("C" * 2_000)], [(3, DAMAGED)]),
    ],
)
def test_a_damaged_row_is_refused_alone(
    tmp_path: Path, rows: str, accepted: list[str], refused: list[tuple[int, str]]
) -> None:
    verdicts = read(tmp_path, "title,author\n" + rows)
    assert titles(verdicts) == list(accepted)
    assert reasons(verdicts) == refused


def test_a_title_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    verdicts = read(tmp_path, f"title,author\nA,x\n{long},x\nB,x\n")
    assert titles(verdicts) == ["A", "B"]
    assert reasons(verdicts) == [(3, "title: Longer than maximum length 200.")]
    lines = read(tmp_path, f'{{"title": "{long}", "author": "x"}}\n', "b.jsonl")
    assert reasons(lines) == [(1, "title: Longer than maximum length 200.")]


@pytest.mark.parametrize("name", ["b.csv", "b.jsonl"])
def test_a_line_beyond_the_maximum_is_refused_alone(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sources, csv_table):
        monkeypatch.setattr(module, "MAX_RECORD", 1_000)
    long = "x" * 12_345
    rows = {
        "b.csv": f'title,author\nA,x\n{long},x\nB,x\n"C,{long}\nD,x\n',
        "b.jsonl": f'{{"title":"A","author":"x"}}\n{long}\n{{"title":"B","author":"x"}}\n'
        f'{long}\n{{"title":"D","author":"x"}}',
    }
    verdicts = read(tmp_path, rows[name], name)
    assert titles(verdicts) == ["A", "B", "D"]
    assert {reason for _, reason in reasons(verdicts)} == {"longer than 4 MiB"}


def test_columns_are_detected_or_given(tmp_path: Path) -> None:
    table = "title,original_title,authors,isbn,isbn13\nS,O,A,0306406152,9780306406157\n"
    book = read(tmp_path, table)[0][1]
    assert isinstance(book, Accepted)
    assert (book.book.title, book.book.isbn) == ("S", "9780306406157")
    book = read(tmp_path, table, columns="title=original_title,isbn=isbn")[0][1]
    assert isinstance(book, Accepted)
    assert (book.book.title, book.book.isbn) == ("O", "0306406152")
    book = read(tmp_path, table, columns="title=original_title,title=title,isbn=")[0][1]
    assert isinstance(book, Accepted)
    assert (book.book.title, book.book.isbn) == ("O", None)


def test_two_columns_of_the_same_name_stay_apart(tmp_path: Path) -> None:
    verdicts = read(tmp_path, "title,author,title\nA,x,B\n")
    assert titles(verdicts) == ["A"]
    assert titles(read(tmp_path, "title,author,title\nA,x,B\n", columns="title=title (2)")) == ["B"]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("title=a", {"title": ["a"]}),
        ("title = a, b ,author=c", {"title": ["a, b"], "author": ["c"]}),
        ("isbn=a,isbn=b,price=", {"isbn": ["a", "b"], "price": []}),
    ],
)
def test_a_map_is_parsed(text: str, columns: dict[str, list[str]]) -> None:
    assert parse_map(text) == columns


@pytest.mark.parametrize("text", ["", "title", "pages=a", "title=a,pages=b,=c,x"])
def test_an_invalid_map_is_refused(text: str) -> None:
    if text.startswith("title=a"):
        assert parse_map(text) == {"title": ["a,pages=b,=c,x"]}  # a column may have such a name
        return
    with pytest.raises(ValueError, match="FIELD=COLUMN"):
        parse_map(text)


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ("title\nA\n", "", r"No column for author: .*--map author=COLUMN.* are: title\."),
        ("a,b\nA,B\n", "", r"No column for title: .* are: a, b\."),
        ("title,author\n", "title=name", r"no column name for title. .* are: title, author\."),
        ("title,author\n", "title=", "No column for title"),
        ('title,"author\nA,x\n', "", "header cannot be read: quotes"),
    ],
)
def test_a_header_without_the_columns_is_reported(
    tmp_path: Path, table: str, columns: str, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        read(tmp_path, table, columns=columns)


@pytest.mark.parametrize("name", ["b.csv", "b.jsonl", "b.mrc"])
@pytest.mark.parametrize("data", [b"", gzip.compress(b"")], ids=["nothing", "gzip"])
def test_an_empty_file_has_no_records(tmp_path: Path, name: str, data: bytes) -> None:
    assert read(tmp_path, data, name) == []


def test_blank_lines_are_ignored(tmp_path: Path) -> None:
    assert read(tmp_path, "\n \n") == []
    assert titles(read(tmp_path, "\n\ntitle;author\n\nA;x\n\n")) == ["A"]


def test_json_lines_are_read_and_damaged_lines_refused(tmp_path: Path) -> None:
    lines = [
        '\ufeff{"Title": "A", "authors": ["x", "y"], "year": 1997.0, "price": 9.50, "isbn": null}',
        "",
        '{"title": "B", "author": "x", "pages": {"n": [1]}}',
        '{"title": "C"',
        '["title"]',
        '{"title": "C", "title": "D", "author": "x"}',
        '{"title": "C", "author": "x", "price": NaN}',
        '{"title": "C\\u0000", "author": "x"}',
        '{"author": "x"}',
        '{"title": "E", "author": "x"}',
    ]
    data = "\n".join(lines).encode() + b'\n{"title": "\xff", "author": "x"}'
    verdicts = read(tmp_path, data, "b.jsonl")
    assert titles(verdicts) == ["A", "B", "E"]
    first = verdicts[0][1]
    assert isinstance(first, Accepted)
    assert (first.book.author, first.book.published_year, first.book.isbn) == ("x, y", 1997, None)
    assert reasons(verdicts) == [
        *((number, "not a JSON object") for number in (4, 5, 6, 7, 8)),
        (9, "title: Missing data for required field."),
        (11, "not a JSON object"),
    ]
    unfinished = verdicts[2][1]
    assert isinstance(unfinished, Refused)
    assert unfinished.errors["_record"][0].startswith("The line is not JSON: ")


def test_a_json_array_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="one object a line"):
        read(tmp_path, '[\n{"title": "A"}]', "b.json")


def test_the_format_is_detected_by_content_before_the_name(tmp_path: Path) -> None:
    assert titles(read(tmp_path, '{"title": "A", "author": "x"}', "b.csv")) == ["A"]
    assert titles(read(tmp_path, marc(), "b.csv")) == ["T"]
    assert titles(read(tmp_path, "title,author\nA,x", "b.txt")) == ["A"]


@pytest.mark.parametrize(
    ("name", "encoding", "columns"), [("b.jsonl", "latin-1", ""), ("b.mrc", None, "title=t")]
)
def test_options_of_other_formats_are_refused(
    tmp_path: Path, name: str, encoding: str | None, columns: str
) -> None:
    with pytest.raises(SourceError, match="is for CSV"):
        read(tmp_path, b"", name, encoding=encoding, columns=columns)


def test_gzip_is_detected_by_its_first_bytes(tmp_path: Path) -> None:
    table = gzip.compress(b"title,author\nA,x\n") + gzip.compress(b"B,x\n")
    assert titles(read(tmp_path, table)) == ["A", "B"]
    lines = gzip.compress(b'{"title": "A", "author": "x"}')
    assert titles(read(tmp_path, lines, "b.jsonl.gz")) == ["A"]


@pytest.mark.parametrize("broken", ["cut", "garbled", "checksum", "tail"])
def test_no_record_of_a_damaged_gzip_file_is_used(tmp_path: Path, broken: str) -> None:
    rows = "".join(f"Title {n},Author {n * 7919 % 1000},{n * 104729}\n" for n in range(50_000))
    packed = bytearray(gzip.compress(b"title,author,note\n" + rows.encode()))
    if broken == "cut":
        packed = packed[: len(packed) // 2]
    elif broken == "garbled":
        packed[len(packed) // 2 : len(packed) // 2 + 50] = b"\xff" * 50
    elif broken == "checksum":
        packed[-8] ^= 1
    else:
        packed += b"trash"
    (tmp_path / "b.csv").write_bytes(packed)
    with (
        pytest.raises(SourceError, match="gzip data are damaged"),
        open_reading(str(tmp_path / "b.csv"), None, None, {}),
    ):
        raise AssertionError("the file was opened")


def marc(
    *fields: Field, title: str = "T /", author: str = "A,", scheme: str = "a", fixed: str = ""
) -> bytes:
    """Make a MARC record, of these fields besides title and author."""
    record = MarcRecord()
    record.leader.type_of_record = "a"
    record.fields = [
        Field("008", data=fixed.ljust(40)),
        *(field(tag, a=text) for tag, text in (("100", author), ("245", title)) if text),
        *fields,
    ]
    packed: bytes = record.as_marc()
    return packed[:9] + scheme.encode() + packed[10:]


def field(tag: str, second: str = " ", **parts: str) -> Field:
    """Make a field of subfields."""
    return Field(
        tag, Indicators("1", second), [Subfield(code, text) for code, text in parts.items()]
    )


def serial(packed: bytes) -> bytes:
    """Turn a record into the record of a serial."""
    return packed[:7] + b"s" + packed[8:]


NOVEL = [field("245", a="Emma :", b="a novel ;", c="by Jane")]
PART = [field("245", a="Henry IV.", n="Part 1.", h="[text]")]
NUMBERS = [field("020", z="123"), field("020", a="junk"), field("020", a="9780306406157")]


@pytest.mark.parametrize(
    ("record", "name", "value"),
    [
        (marc(title="War and peace /"), "title", "War and peace"),
        (marc(*NOVEL, title=""), "title", "Emma: a novel"),
        (marc(*PART, title=""), "title", "Henry IV. Part 1."),
        (marc(title="[Untitled]"), "title", "Untitled"),
        (marc(author="Tolstoy, Leo,"), "author", "Tolstoy, Leo"),
        (marc(author="Rowling, J. K."), "author", "Rowling, J. K."),
        (marc(author="Homer."), "author", "Homer"),
        (marc(author="Acme, Inc."), "author", "Acme, Inc."),
        (marc(field("700", a="Beauvoir, Simone de,"), author=""), "author", "Beauvoir, Simone de"),
        (marc(field("110", a="World Bank."), author=""), "author", "World Bank"),
        (marc(field("020", a="0306406152 (pbk.) :")), "isbn", "0306406152"),
        (marc(*NUMBERS), "isbn", "9780306406157"),
        (marc(fixed="      s1997    xxu"), "published_year", 1997),
        (marc(field("264", "1", c="c1998.")), "published_year", 1998),
        (marc(field("260", c="[1999]")), "published_year", 1999),
        (marc(field("260", c="1999-2003")), "published_year", None),
        (marc(field("260", c="[1999?]")), "published_year", None),
        (marc(fixed="      n19uu"), "published_year", None),
        (marc(fixed=" " * 33 + "1"), "genre", "Fiction"),
        (marc(fixed=" " * 33 + "0"), "genre", "Non-Fiction"),
        (marc(field("050", a="QA76"), fixed=" " * 33 + "0"), "genre", "Science"),
        (marc(field("050", a="DA30")), "genre", "History"),
        (serial(marc(fixed=" " * 33 + "f")), "genre", None),
        (marc(), "genre", None),
        (marc(), "isbn", None),
        (marc(), "price", None),
    ],
)
def test_the_fields_of_a_marc_record_are_read(
    tmp_path: Path, record: bytes, name: str, value: Any
) -> None:
    ((_, verdict),) = read(tmp_path, record, "b.mrc")
    assert isinstance(verdict, Accepted), verdict
    assert getattr(verdict.book, name) == value


def test_marc_8_is_decoded(tmp_path: Path) -> None:
    packed = marc(title="Tsar?", scheme=" ").replace(b"Tsar?", b"T\xe2etu")  # a combining acute
    assert titles(read(tmp_path, packed, "b.mrc")) == ["T\u00e9tu"]


def broken_marc() -> dict[str, tuple[bytes, str]]:
    """Give damaged records, and the reasons for which they are refused."""
    good = marc(title="Broken")
    place = good.index(b"245")
    entry = good[place : place + 12]
    author = good[place - 12 : place]
    not_marc, not_text = "not a MARC record", "text is not in the record's encoding"
    return {
        "leader, letters for a length": (b"abcde" + good[5:], not_marc),
        "leader, longer than the record": (b"09999" + good[5:], not_marc),
        "leader, base address": (good[:12] + b"99999" + good[17:], not_marc),
        "leader, base address of nothing": (good[:12] + b"00000" + good[17:], not_marc),
        "leader alone": (good[:24] + b"\x1d", not_marc),
        "directory, letters": (good.replace(entry, entry[:3] + b"xxxx" + entry[7:]), not_marc),
        "directory, shifted": (
            good.replace(entry, entry[:7] + b"%05d" % (int(entry[7:]) + 1)), not_marc,
        ),
        "directory, cut short": (
            good.replace(entry, entry[:3] + b"%04d" % (int(entry[3:7]) - 2) + entry[7:]), not_marc,
        ),
        "directory, start and length shifted": (
            good.replace(
                entry, entry[:3] + b"%04d%05d" % (int(entry[3:7]) - 3, int(entry[7:]) + 3)
            ), not_marc,
        ),
        "directory, two fields in one": (
            good.replace(author, author[:3] + b"%04d" % (int(author[3:7]) + 11) + author[7:]),
            not_marc,
        ),
        "an ISSN for an ISBN": (
            marc(field("020", a="14764687")),
            "isbn: String does not match expected pattern: 10 or 13 digits.",
        ),
        "UTF-8 under the label of MARC-8": (
            marc(title="Caf\u00e9 \u00fcber", scheme=" "), not_text,
        ),
        "MARC-8, a mark without a letter": (
            marc(title="Broken", scheme=" ").replace(b"Broken", b"Broke\xe2"), not_text,
        ),
        "directory, of half an entry": (good.replace(entry, entry[:7]), not_marc),
        "UTF-8": (good.replace(b"Broken", b"Br\xffken"), not_text),
        "MARC-8": (marc(title="Broken", scheme=" ").replace(b"Broken", b"Br\xffken"), not_text),
        "MARC-8, escaped": (
            marc(title="Broken", scheme=" ").replace(b"Broken", b"Br\x1b$1n"), not_text,
        ),
        "without a title": (marc(title=""), "title: Missing data for required field."),
        "without an author": (marc(author=""), "author: Missing data for required field."),
    }  # fmt: skip


@pytest.mark.parametrize("kind", broken_marc())
def test_a_damaged_marc_record_is_refused_alone(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    broken, reason = broken_marc()[kind]
    verdicts = read(tmp_path, marc(title="First") + broken + b"\r\n" + marc(title="Last"), "b.mrc")
    assert titles(verdicts) == ["First", "Last"]
    assert reasons(verdicts) == [(2, reason)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kept", [-1, 60, 24])
def test_a_marc_record_without_its_end_is_refused_alone(tmp_path: Path, kept: int) -> None:
    data = marc(title="First") + marc(title="Cut")[:kept] + marc(title="Last")
    verdicts = read(tmp_path, data, "b.mrc")
    assert titles(verdicts) == ["First", "Last"]
    assert reasons(verdicts) == [(2, "not a MARC record")]


def test_the_last_record_of_a_truncated_marc_file_is_refused(tmp_path: Path) -> None:
    verdicts = read(tmp_path, marc(title="First") + marc(title="Cut")[:-10], "b.mrc")
    assert titles(verdicts) == ["First"]
    assert [number for number, _ in reasons(verdicts)] == [2]


def test_marc_without_an_end_is_not_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.importer.marc.MAX_RECORD", 1_000)
    data = marc(title="First") + b"x" * 1_000_000 + b"\x1d" + marc(title="Last")
    verdicts = read(tmp_path, data, "b.mrc")
    assert titles(verdicts) == ["First", "Last"]
    assert reasons(verdicts) == [(2, "longer than 4 MiB")]


def test_every_damaged_record_can_be_written_as_json(tmp_path: Path) -> None:
    data = {
        "b.csv": b'title,author\n\xff,"x\n',
        "b.jsonl": b"{\xff\n",
        "b.mrc": b"00000\xff\x1d",
    }
    for name, damaged in data.items():
        (tmp_path / name).write_bytes(damaged)
        with open_reading(str(tmp_path / name), None, None, {}) as reading:
            (record,) = reading.records
            assert json.loads(json.dumps(record.raw)) == record.raw
