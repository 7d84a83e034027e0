"""DER as a tree that can be damaged: for certificates that no builder would make."""

from __future__ import annotations

from dataclasses import dataclass, field

CONSTRUCTED = 0x20


@dataclass
class Node:
    """One value. ``head`` replaces tag and length as encoded, to write them wrongly."""

    tag: int
    content: bytes = b""
    children: list[Node] = field(default_factory=list)
    head: bytes | None = None

    def encode(self) -> bytes:
        body = (
            b"".join(child.encode() for child in self.children) if self.children else self.content
        )
        head = self.head if self.head is not None else bytes([self.tag]) + length(len(body))
        return head + body


def length(size: int) -> bytes:
    if size < 0x80:
        return bytes([size])
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets


def parse(data: bytes) -> Node:
    node, rest = _parse(data)
    assert not rest
    return node


def _parse(data: bytes) -> tuple[Node, bytes]:
    tag, size, at = data[0], data[1], 2
    if size & 0x80:
        octets = size & 0x7F
        size, at = int.from_bytes(data[2 : 2 + octets], "big"), 2 + octets
    body, rest = data[at : at + size], data[at + size :]
    if not tag & CONSTRUCTED:
        return Node(tag, body), rest
    children = []
    while body:
        child, body = _parse(body)
        children.append(child)
    return Node(tag, children=children), rest


def extensions(tbs: Node) -> Node:
    """The SEQUENCE of extensions of a tbsCertificate."""
    return next(child for child in tbs.children if child.tag == 0xA3).children[0]


def extension(tbs: Node, oid: bytes) -> Node:
    """The extension whose OBJECT IDENTIFIER has the content ``oid``."""
    return next(e for e in extensions(tbs).children if e.children[0].content == oid)


BASIC_CONSTRAINTS = bytes.fromhex("551d13")
KEY_USAGE = bytes.fromhex("551d0f")
