"""Usernames: check their characters, and compare them.

Three rules of Unicode, of which Python implements only parts:

- Two names are equal if their NFKC_Casefold is equal (UAX #31, R5): letter case, full-width and
  other compatibility forms, and invisible characters make no difference.
- Invisible characters, and blanks other than the space, are refused: Default_Ignorable_Code_Point,
  line and paragraph separators, controls, unassigned and private characters, and the few
  characters of visible categories that have no glyph.
- The letters of a name are of one script, or of Latin with Chinese, Japanese or Korean: "Highly
  Restrictive" of UTS #39, 5.2, without its identifier profile (a name may hold blanks and signs).
  Whole-script confusables are not detected: a Cyrillic name may look like a Latin name.

The tables come from the Unicode Character Database 15.0 (Scripts.txt, ScriptExtensions.txt,
DerivedCoreProperties.txt; © Unicode, Inc., https://www.unicode.org/terms_of_use.html). A line of
`usernames.txt` holds the first and the last code point of a range, in hex, and the scripts of the
range: Script_Extensions, else Script; `*` for Common and Inherited. Adjacent ranges with the same
scripts share a line, even with unassigned code points between them. A code point without a line is
refused.
"""

import unicodedata
from bisect import bisect_right
from importlib.resources import files

IGNORABLE = frozenset(  # Default_Ignorable_Code_Point
    chr(point)
    for first, last in (
        (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5),
        (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
        (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8),
        (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
    )
    for point in range(first, last + 1)
)  # fmt: skip
# Braille, Egyptian (full, half), Khitan, musical notation: no Unicode property identifies them.
BLANK = frozenset("\u2800\U00013441\U00013442\U00016fe4\U0001d159")
HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}  # general categories
EVERY = frozenset({"*"})
# Chinese, Japanese and Korean are written with several scripts (UTS #39, 5.1).
WRITTEN_WITH = {
    "Hani": {"Hanb", "Jpan", "Kore"},
    "Hira": {"Jpan"},
    "Kana": {"Jpan"},
    "Hang": {"Kore"},
    "Bopo": {"Hanb"},
}
BESIDE_LATIN = {"Hanb", "Jpan", "Kore"}


def _read_table() -> tuple[list[int], list[tuple[int, frozenset[str]]]]:
    firsts, rest = [], []
    table = (files("service.security") / "usernames.txt").read_text(encoding="ascii")
    for line in table.splitlines():
        first, last, *scripts = line.split()
        more = [WRITTEN_WITH.get(script, ()) for script in scripts]
        firsts.append(int(first, 16))
        rest.append((int(last, 16), frozenset(scripts).union(*more)))
    return firsts, rest


FIRSTS, REST = _read_table()


def name_key(name: str) -> str:
    """Return the form of a name for comparison: NFKC_Casefold, with single spaces."""
    folded = unicodedata.normalize("NFD", name).casefold()
    folded = unicodedata.normalize("NFKD", folded).casefold()
    shown = "".join(c for c in folded if c not in IGNORABLE and c not in BLANK)
    return " ".join(unicodedata.normalize("NFKC", shown).split())


def check_name(name: str) -> str:
    """Return the name if it is allowed, else raise ValueError."""
    for character in name:
        category = unicodedata.category(character)
        is_blank = category == "Zs" and character != " "
        if is_blank or category in HIDDEN or character in IGNORABLE or character in BLANK:
            raise ValueError("Must not hold control or invisible characters.")
    # The comparison form decides the script: a mathematical bold A is Latin, a micro sign Greek.
    if not _is_of_one_script(name_key(name)):
        raise ValueError("Must not mix letters of different scripts.")
    return name


def scripts_of(character: str) -> frozenset[str]:
    """Return the scripts in which a character is used; an empty set for an unknown character."""
    point = ord(character)
    index = bisect_right(FIRSTS, point) - 1
    last, scripts = REST[index] if index >= 0 else (-1, frozenset[str]())
    return scripts if point <= last else frozenset()


def _is_of_one_script(name: str) -> bool:
    used = {scripts_of(character) for character in name} - {EVERY}
    common = frozenset.intersection(*used) if used else EVERY
    if common:
        return True
    others = [scripts for scripts in used if "Latn" not in scripts]
    return bool(frozenset.intersection(*others) & BESIDE_LATIN)
