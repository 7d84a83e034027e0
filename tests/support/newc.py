"""Reads cpio archives of the kernel's "newc" form, apart from the code that writes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    inode: int
    mode: int
    owner: int
    group: int
    links: int
    time: int
    device: tuple[int, int]
    content: bytes


def members(archive: bytes) -> dict[str, Member]:
    """Every entry in the archive's order; fails for what is not exactly one archive."""
    found: dict[str, Member] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701", f"no entry at {at}"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        inode, mode, owner, group, links, time, size, *_, major, minor, length, _ = fields
        name = archive[at + 110 : at + 109 + length].decode()
        start = _aligned(at + 110 + length)
        content = archive[start : start + size]
        assert len(content) == size
        at = _aligned(start + size)
        if name == "TRAILER!!!":
            assert at == len(archive)
            return found
        assert name not in found
        found[name] = Member(inode, mode, owner, group, links, time, (major, minor), content)


def _aligned(at: int) -> int:
    return at + -at % 4
