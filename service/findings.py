"""Findings: what is wrong with a body or query, as much of it as an answer holds."""

import json
from itertools import islice

from service.validation import Messages

SENTENCE = "The request holds fields that are not valid"
MOST_FIELDS = 20
MOST_NAME = 64  # characters of a field's name, which a client may have made up
ROOM = 3_500  # bytes as JSON: an answer holds findings twice, and has at most 8 KiB


def shortened(messages: Messages) -> tuple[Messages, str]:
    """Give the first findings, their names cut, and a sentence that counts the rest."""
    kept: Messages = {}
    room = ROOM
    for name, sentences in islice(messages.items(), MOST_FIELDS):
        short = name if len(name) <= MOST_NAME else f"{name[:MOST_NAME]}…"
        room -= len(json.dumps({short: sentences}))  # ASCII, which is never shorter than UTF-8
        if room < 0:
            break
        kept[short] = sentences
    rest = len(messages) - len(kept)
    return kept, SENTENCE + (f"; {rest} more are not listed" if rest else "")
