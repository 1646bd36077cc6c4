"""Decode compressed responses, without Octavo's code."""

import gzip
import sys
from collections.abc import Mapping
from hashlib import blake2b

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["decode", "tag_for", "zstd"]


def decode(headers: Mapping[str, str], body: bytes) -> bytes:
    """Return the content of a body. headers: names in lower case."""
    match headers.get("content-encoding"):
        case None:
            return body
        case "gzip":
            return gzip.decompress(body)
        case "zstd":
            return zstd.decompress(body)
        case other:
            raise AssertionError(f"an unknown coding: {other}")


def tag_for(headers: Mapping[str, str], content: bytes) -> str:
    """Return the ETag that a response with this content must have."""
    coding = headers.get("content-encoding")
    suffix = f"-{coding}" if coding else ""
    return f'"{blake2b(content, digest_size=12).hexdigest()}{suffix}"'
