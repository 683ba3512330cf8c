"""A bounds-checked reader over binary input: fixed-size fields out, :class:`Malformed` on anything short."""

from __future__ import annotations

from marblerun.errors import Malformed


class Reader:
    """Walks over ``data`` from the front; every read names the field, so that an error says where it happened.

    Integers are little-endian, as in all SGX and TDX structures (formats, preamble). Never reads past the end and
    never allocates more than the input holds, whatever a length field says.
    """

    __slots__ = ("_data", "_offset", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._offset = 0
        self._what = what

    @property
    def offset(self) -> int:
        """Bytes consumed so far."""
        return self._offset

    @property
    def remaining(self) -> int:
        """Bytes left."""
        return len(self._data) - self._offset

    def take(self, size: int, field: str) -> bytes:
        """The next ``size`` bytes; Malformed if fewer are left."""
        end = self._offset + size
        if size < 0 or end > len(self._data):
            raise Malformed(
                f"{field} needs {size} bytes at offset {self._offset}, but {self.remaining} are left",
                where=self._what,
            )
        chunk = self._data[self._offset : end]
        self._offset = end
        return chunk

    def u16(self, field: str) -> int:
        """The next two bytes as an unsigned integer."""
        return int.from_bytes(self.take(2, field), "little")

    def u32(self, field: str) -> int:
        """The next four bytes as an unsigned integer."""
        return int.from_bytes(self.take(4, field), "little")

    def u64(self, field: str) -> int:
        """The next eight bytes as an unsigned integer."""
        return int.from_bytes(self.take(8, field), "little")

    def zeros(self, size: int, field: str) -> None:
        """Skip ``size`` reserved bytes; Malformed unless all are zero."""
        at = self._offset
        if any(self.take(size, field)):
            raise Malformed(f"{field} at offset {at} must be zero", where=self._what)

    def rest(self) -> bytes:
        """Everything that is left, possibly nothing."""
        return self.take(self.remaining, "rest")

    def expect_end(self) -> None:
        """Malformed if anything is left."""
        if self.remaining:
            raise Malformed(f"{self.remaining} bytes follow after offset {self._offset}", where=self._what)
