"""Values as bytes and back, for a reader that doesn't trust the writer.

One tag byte a value, lengths in front, so reading builds plain values only: never code, classes or references (no
pickle, no marshal). Carried: None, bool, int, float (inf and nan too), complex, str, bytes, bytearray, list, tuple,
set, frozenset, dict with any of these as keys, range, and iterators as what they yield. A subclass of these travels
as what it extends, so an answer's own `__eq__` stays behind.
"""

from __future__ import annotations

import struct
from _collections_abc import Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

MAX_DEPTH = 100
LENGTH = struct.Struct(">I")
FLOAT = struct.Struct(">d")
COMPLEX = struct.Struct(">dd")


class UnportableError(TypeError):
    """A value that can't travel, and why."""


class UnportableKindError(UnportableError):
    """A value of a type that can't travel."""


def encode(value: Any, max_bytes: int) -> bytes:
    """The value's bytes. Raises `UnportableError` for another type, too many bytes or too deep a nesting."""
    parts = _Parts(max_bytes)
    _write(value, parts, 0)
    return b"".join(parts.parts)


def decode(data: bytes) -> Any:
    """The value of these bytes. Raises `ValueError` when they aren't one value; builds plain values only."""
    reader = _Reader(data)
    try:
        value = reader.value(0)
    except (struct.error, IndexError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"not a value: {error}") from error
    if reader.place != len(data):
        raise ValueError("not a value: bytes are left over")
    return value


class _Parts:
    """The bytes so far, and how many may follow."""

    def __init__(self, max_bytes: int) -> None:
        self.parts: list[bytes] = []
        self.left = self.limit = max_bytes

    def add(self, part: bytes) -> None:
        self.left -= len(part)
        if self.left < 0:
            raise UnportableError(f"larger than {self.limit} bytes")
        self.parts.append(part)


def _write(value: Any, parts: _Parts, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UnportableError(f"nested deeper than {MAX_DEPTH}")
    for kinds, write in WRITERS:
        if isinstance(value, kinds):
            write(value, parts, depth)
            return
    raise UnportableKindError(f"of type {type(value).__name__}, which can't leave the sandbox")


def _sized(tag: bytes, data: bytes, parts: _Parts) -> None:
    parts.add(tag + LENGTH.pack(len(data)))
    parts.add(data)


def _items(tag: bytes, values: Iterable[Any], parts: _Parts, depth: int) -> None:
    place, count = len(parts.parts), 0
    parts.add(tag + LENGTH.pack(0))
    for value in values:
        _write(value, parts, depth + 1)
        count += 1
    parts.parts[place] = tag + LENGTH.pack(count)


def _write_dict(value: dict[Any, Any], parts: _Parts, depth: int) -> None:
    parts.add(b"d" + LENGTH.pack(len(value)))
    for key, item in value.items():
        _write(key, parts, depth + 1)
        _write(item, parts, depth + 1)


def _write_none(_value: None, parts: _Parts, _depth: int) -> None:
    parts.add(b"N")


def _write_bool(value: bool, parts: _Parts, _depth: int) -> None:
    parts.add(b"T" if value else b"F")


def _write_int(value: int, parts: _Parts, _depth: int) -> None:
    _sized(b"i", format(int(value), "x").encode(), parts)  # hexadecimal: decimals of long integers are refused


def _write_float(value: float, parts: _Parts, _depth: int) -> None:
    parts.add(b"f" + FLOAT.pack(value))


def _write_complex(value: complex, parts: _Parts, _depth: int) -> None:
    parts.add(b"c" + COMPLEX.pack(value.real, value.imag))


def _write_str(value: str, parts: _Parts, _depth: int) -> None:
    _sized(b"s", str(value).encode("utf-8", "surrogatepass"), parts)


def _write_range(value: range, parts: _Parts, depth: int) -> None:
    _items(b"r", (value.start, value.stop, value.step), parts, depth)


def _collection(tag: bytes) -> Callable[[Any, _Parts, int], None]:
    return lambda values, parts, depth: _items(tag, values, parts, depth)


def _bytes(tag: bytes) -> Callable[[Any, _Parts, int], None]:
    return lambda value, parts, _: _sized(tag, bytes(value), parts)


# bool before int: it is one of them.
WRITERS: tuple[tuple[Any, Callable[[Any, _Parts, int], None]], ...] = (
    (type(None), _write_none),
    (bool, _write_bool),
    (int, _write_int),
    (float, _write_float),
    (str, _write_str),
    (list, _collection(b"l")),
    (tuple, _collection(b"t")),
    (dict, _write_dict),
    (set, _collection(b"S")),
    (frozenset, _collection(b"Z")),
    (bytes, _bytes(b"b")),
    (bytearray, _bytes(b"a")),
    (complex, _write_complex),
    (range, _write_range),
    (Iterator, _collection(b"n")),
    (type({}.keys()), _collection(b"S")),
    (type({}.values()), _collection(b"l")),
    (type({}.items()), _collection(b"S")),
)

COLLECTIONS: dict[bytes, Callable[[list[Any]], Any]] = {
    b"l": list,
    b"t": tuple,
    b"S": set,
    b"Z": frozenset,
    b"n": iter,
    b"r": lambda bounds: range(*bounds),
}
CONSTANTS = {b"N": None, b"T": True, b"F": False}
SIZED: dict[bytes, Callable[[bytes], Any]] = {
    b"i": lambda data: int(data, 16),
    b"s": lambda data: data.decode("utf-8", "surrogatepass"),
    b"b": bytes,
    b"a": bytearray,
}


class _Reader:
    """Reads values one after the other; every count is bounded by the bytes that are there."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"not a value: nested deeper than {MAX_DEPTH}")
        tag = self.take(1)
        if tag in CONSTANTS:
            return CONSTANTS[tag]
        if tag in SIZED:
            return SIZED[tag](self.take(self.count()))
        if tag in COLLECTIONS:
            return COLLECTIONS[tag]([self.value(depth + 1) for _ in range(self.count())])
        if tag == b"d":
            return {self.value(depth + 1): self.value(depth + 1) for _ in range(self.count())}
        if tag == b"f":
            return FLOAT.unpack(self.take(8))[0]
        if tag == b"c":
            return complex(*COMPLEX.unpack(self.take(16)))
        raise ValueError(f"not a value: tag {tag!r}")

    def take(self, size: int) -> bytes:
        part = self.data[self.place : self.place + size]
        if len(part) < size:
            raise ValueError("not a value: it ends early")
        self.place += size
        return part

    def count(self) -> int:
        size = int(LENGTH.unpack(self.take(4))[0])
        if size > len(self.data) - self.place:
            raise ValueError("not a value: a length beyond its end")
        return size
