"""Mutations of seeds: flipped bits, cuts, splices, words of the format, depth, huge numbers, long strings."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_MOST_BYTES = 100_000
_MOST_PIECES = 3
_LENGTHS = (1, 2, 15, 16, 17, 63, 128, 129, 255, 256, 257, 1000, 4096, 70_000)
_NUMBERS = (
    b"0", b"-0", b"1", b"-1", b"1e400", b"-1e400", b"1e39", b"3.5e38", b"1e-400", b"9007199254740992",
    b"9007199254740993",
    b"-9007199254740993", b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"9" * 40,
    b"9" * 5000,
    b"0.1", b".5", b"5.", b"1_0", b"0x10", b"1e", b"--1", b"+1", b"NaN", b"-Infinity", b"inf", b"nan", b"1,5",
    b"1714564800", b"1714564800000", b"1714564800000000000", b"946684799", b"4102444800", b"-62135596800",
)  # fmt: skip
_TEXTS = (
    b"", b" ", b"\t", b"\r\n", b"\n\n", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"\x1f\x8b\x08", b"\x78\x9c",
    "é".encode(), "٣".encode(), "\u2028".encode(), "😀".encode(), b"\\u0000", b"\\ud800", b"\\", b"'", b'"',
    b"+", b"#", b"$",
    b"true", b"false", b"null", b"../..", b"%s%n", b"2024-05-01T12:00:00Z", b"1999-12-31T23:59:59Z",
    b"9999-12-31",
    b"2024-02-30", b"2024-05-01T12:00:60Z", b"0001-01-01T00:00:00+23:59",
)  # fmt: skip
_OPENINGS = (b"[", b"{", b'{"a":', b'[{"v":', b"\x81", b"\xa1\x61a", b"(", b'"')
_DEPTHS = (1, 2, 14, 15, 16, 17, 30, 500, 3000)

_Change = Callable[["Mutator", bytearray], None]


class Mutator:
    """Makes cases of ``seeds`` and ``words`` of the format; the only random generator is that of `case`."""

    def __init__(self, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
        self._seeds, self._words = list(seeds), [*words, *_NUMBERS, *_TEXTS]
        self._random = random.Random()

    def case(self, seed: int, number: int) -> tuple[list[bytes], int]:
        """The pieces of a case, and a number from which the target derives all other choices."""
        self._random.seed(seed << 40 | number)
        pieces = [self._piece() for _ in range(self._random.choice((1, 1, 1, 2, _MOST_PIECES)))]
        return pieces, self._random.getrandbits(32)

    def _piece(self) -> bytes:
        piece = bytearray(self._random.choice(self._seeds))
        for _ in range(self._random.choice((0, 1, 1, 1, 1, 2, 2, 4))):
            self._random.choice(_CHANGES)(self, piece)
            del piece[_MOST_BYTES:]
        return bytes(piece)

    def place(self, piece: bytearray) -> int:
        """A random place in a piece, its end included."""
        return int(self._random.random() * (len(piece) + 1))

    def flip_bit(self, piece: bytearray) -> None:
        """Flip one bit."""
        if piece:
            piece[int(self._random.random() * len(piece))] ^= 1 << self._random.getrandbits(3)

    def set_byte(self, piece: bytearray) -> None:
        """Replace one byte."""
        if piece:
            piece[int(self._random.random() * len(piece))] = self._random.getrandbits(8)

    def truncate(self, piece: bytearray) -> None:
        """Cut the end."""
        del piece[self.place(piece) :]

    def behead(self, piece: bytearray) -> None:
        """Cut the beginning."""
        del piece[: self.place(piece)]

    def cut_out(self, piece: bytearray) -> None:
        """Delete some bytes."""
        at = self.place(piece)
        del piece[at : at + self._random.choice((1, 1, 2, 4, 16))]

    def double(self, piece: bytearray) -> None:
        """Repeat a part, up to many times."""
        at = self.place(piece)
        part = piece[at : at + self._random.choice((1, 4, 16, 64, 256))]
        piece[at:at] = part * self._random.choice((1, 1, 2, 10, 300))

    def splice(self, piece: bytearray) -> None:
        """Continue with a part of another seed."""
        other = self._random.choice(self._seeds)
        piece[self.place(piece) :] = other[int(self._random.random() * (len(other) + 1)) :]

    def insert_word(self, piece: bytearray) -> None:
        """Insert a word of the format, an odd number or odd text."""
        at = self.place(piece)
        piece[at:at] = self._random.choice(self._words)

    def replace_number(self, piece: bytearray) -> None:
        """Replace a number by an odd one."""
        found = self._run_at(piece, b"0123456789.+-eE")
        piece[found] = self._random.choice(_NUMBERS)

    def replace_text(self, piece: bytearray) -> None:
        """Replace a word by another."""
        found = self._run_at(piece, b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
        piece[found] = self._random.choice(self._words)

    def lengthen(self, piece: bytearray) -> None:
        """Repeat one byte many times."""
        at = self.place(piece)
        what = piece[at : at + 1] or b"x"
        piece[at:at] = what * self._random.choice(_LENGTHS)

    def nest(self, piece: bytearray) -> None:
        """Open brackets many times, and sometimes close them as often."""
        opening, depth = self._random.choice(_OPENINGS), self._random.choice(_DEPTHS)
        closing = opening[:1].translate(bytes.maketrans(b"[{(", b"]})")) if self._random.random() < 0.7 else b""
        at = self.place(piece)
        piece[at:at] = opening * depth + b"0" + closing * depth

    def random_bytes(self, piece: bytearray) -> None:
        """Insert random bytes."""
        at = self.place(piece)
        piece[at:at] = self._random.randbytes(self._random.choice((1, 2, 8, 64)))

    def _run_at(self, piece: bytearray, kind: bytes) -> slice:
        """The place of a run of bytes of one kind."""
        begin = self.place(piece)
        while begin < len(piece) and piece[begin] not in kind:
            begin += 1
        end = begin
        while end < len(piece) and piece[end] in kind:
            end += 1
        return slice(begin, end)


_CHANGES: tuple[_Change, ...] = (
    *[Mutator.replace_number] * 6, *[Mutator.replace_text] * 3, *[Mutator.insert_word] * 2, *[Mutator.flip_bit] * 2,
    Mutator.set_byte, Mutator.truncate, Mutator.behead, Mutator.cut_out, Mutator.double, Mutator.splice,
    Mutator.lengthen, Mutator.nest, Mutator.random_bytes,
)  # fmt: skip
