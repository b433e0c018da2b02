"""Reader of LMDB files.

The C library trusts every page number of a file, and a damaged one ends the process with a bus
error. Here pages are checked as they are read, and no memory is mapped.

References: MDB_meta, MDB_page and MDB_node in libraries/liblmdb/mdb.c of LMDB 0.9 (format 1,
64-bit, little-endian), https://github.com/LMDB/lmdb
"""

import os
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path

MAGIC = struct.pack("<I", 0xBEEFC0DE)  # at byte 16 of a file
PAGE_HEADER, META, NODE_HEADER = 16, 136, 8  # bytes
BRANCH, LEAF, ON_OTHER_PAGES = 1, 2, 1  # flags of a page; flag of a node whose value is long


class Database:
    """Values by their sorted keys, read by threads and forked processes alike."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        first = self._bytes(PAGE_HEADER, META)
        [self._page_size] = struct.unpack_from("<I", first, 24)
        metas = [first, self._bytes(self._page_size + PAGE_HEADER, META)]
        if any(meta[:8] != MAGIC + b"\1\0\0\0" for meta in metas):
            raise ValueError("it is not of format 1")
        newest = max(metas, key=lambda meta: struct.unpack_from("<Q", meta, 128))
        flags, depth, count, root, last = struct.unpack_from("<HH24xQQQ", newest, 76)
        if (needed := (last + 1) * self._page_size) > os.path.getsize(path):
            raise ValueError(f"it is shorter than its {needed} bytes")
        if os.pread(self._file, 8, needed) == struct.pack("<Q", last + 1):
            raise ValueError("it has pages of a write that was not finished")
        if flags:
            raise ValueError("its keys are numbers or have several values")
        self._places: dict[str, int] = {}  # offset << 32 | size
        previous: tuple[bytes, ...] = ()
        for key, place in self._leaves(root, min(depth, 32)) if count else ():
            if previous >= (key,):
                raise ValueError("its keys are not sorted")
            previous = (key,)
            self._places[os.fsdecode(key)] = place
        self.keys = list(self._places)
        if not len(self.keys) == len({*self._places.values()}) == count:
            raise ValueError(f"it has {len(self.keys)} of {count} values")

    def length(self, key: str) -> int:
        """Bytes of a value."""
        return self._places[key] % (1 << 32)

    def read(self, key: str) -> bytes:
        """Value of a key."""
        return self._bytes(*divmod(self._places[key], 1 << 32))

    def _bytes(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file, size, offset)
        if len(data) < size:
            raise ValueError(f"it ends before byte {offset + size}")
        return data

    def _leaves(self, number: int, depth: int) -> Iterator[tuple[bytes, int]]:
        """Keys and places of the values below a page."""
        page = self._bytes(number * self._page_size, self._page_size)
        stated, flags, end = struct.unpack_from("<Q2xHH", page)
        if stated != number or flags not in (BRANCH, LEAF) or not depth:
            raise ValueError(f"its page {number} is damaged")
        for node in struct.unpack_from(f"<{max(end - PAGE_HEADER, 0) // 2}H", page, PAGE_HEADER):
            low, high, kind, key_size = struct.unpack_from("<4H", page, node)
            key_end = node + NODE_HEADER + key_size
            offset = number * self._page_size + key_end
            if flags == BRANCH:
                yield from self._leaves(low | high << 16 | kind << 32, depth - 1)
                continue
            if kind == ON_OTHER_PAGES:
                [first] = struct.unpack_from("<Q", page, key_end)
                offset = first * self._page_size + PAGE_HEADER
            elif kind:
                raise ValueError("it holds databases by name, not images")
            yield page[node + NODE_HEADER : key_end], offset << 32 | low | high << 16
