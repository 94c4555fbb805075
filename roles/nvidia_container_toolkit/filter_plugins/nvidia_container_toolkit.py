"""Filters of the role nvidia_container_toolkit: a key's fingerprint, what a merge added."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections.abc import Iterator

BLOCK = "PGP PUBLIC KEY BLOCK-----"


# RFC 4880, 4.3.
SECRET_KEY, PUBLIC_KEY, SECRET_SUBKEY = 5, 6, 7


def _body(key: str) -> bytes:
    """The packets of a text that is one armoured public key and nothing else. Raises ValueError."""
    lines = [line.strip() for line in key.strip().splitlines()]
    if lines[0] != f"-----BEGIN {BLOCK}" or lines[-1] != f"-----END {BLOCK}" or "" not in lines:
        raise ValueError("not one block")
    blank = lines.index("")
    if not all(re.match(r"[A-Za-z]+: ", line) for line in lines[1:blank]):
        raise ValueError("not a header")
    body = lines[blank + 1 : -1]
    if body and re.fullmatch(r"=[A-Za-z0-9+/]{4}", body[-1]):
        body.pop()
    return base64.b64decode("".join(body), validate=True)


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Every packet, as its tag and its body. Raises ValueError or IndexError for what is cut short."""
    while data:
        tag = data[0]
        if not tag & 0x80:
            raise ValueError("not a packet")
        if tag & 0x40:
            first = data[1]
            if first < 192:
                start, length = 2, first
            elif first < 224:
                start, length = 3, ((first - 192) << 8) + data[2] + 192
            elif first == 255:
                start, length = 6, int.from_bytes(data[2:6], "big")
            else:
                raise ValueError("a length in parts")
            kind = tag & 0x3F
        else:
            size = (1, 2, 4)[tag & 3]
            start, length, kind = 1 + size, int.from_bytes(data[1 : 1 + size], "big"), (tag >> 2) & 0x0F
        if len(data) < start + length:
            raise ValueError("cut short")
        yield kind, data[start : start + length]
        data = data[start + length :]


def fingerprint(key: str) -> str:
    """The fingerprint (40 hex digits) of an armoured OpenPGP version 4 public key; "" for anything else.

    Anything else is also a text with a second key: apt would accept the signature of either.
    RFC 4880, 12.2: SHA-1 of 0x99, the packet's length in two octets, and the packet's body.
    Done here because a minimal host has no gpg.
    """
    try:
        packets = list(_packets(_body(key)))
    except (IndexError, ValueError):
        return ""
    kinds = [kind for kind, _ in packets]
    if kinds[:1] != [PUBLIC_KEY] or kinds.count(PUBLIC_KEY) != 1 or {SECRET_KEY, SECRET_SUBKEY} & set(kinds):
        return ""
    packet = packets[0][1]
    if packet[:1] != b"\x04":
        return ""
    return hashlib.sha1(b"\x99" + len(packet).to_bytes(2, "big") + packet).hexdigest().upper()


def lost(before: dict, after: dict) -> list[str]:
    """The keys of daemon.json that a merge changed although they are not its business."""
    return sorted(
        key
        for key, value in before.items()
        if key not in ("runtimes", "features") and after.get(key) != value
    ) + sorted(
        f"{key}.{name}"
        for key in ("runtimes", "features")
        for name, value in before.get(key, {}).items()
        if name not in ("nvidia", "cdi") and after.get(key, {}).get(name) != value
    )


def unmerge(current: dict, before: dict) -> dict:
    """`current` daemon.json with what the merge brought put back to what it was in `before`."""
    answer = copy.deepcopy(current)
    for key, name in (("runtimes", "nvidia"), ("features", "cdi")):
        if name in before.get(key, {}):
            answer.setdefault(key, {})[name] = before[key][name]
        elif name in answer.get(key, {}):
            del answer[key][name]
            if not answer[key] and key not in before:
                del answer[key]
    return answer


class FilterModule:
    """What Ansible asks a filter plugin for."""

    def filters(self) -> dict:
        return {
            "nvidia_container_toolkit_fingerprint": fingerprint,
            "nvidia_container_toolkit_lost": lost,
            "nvidia_container_toolkit_unmerge": unmerge,
        }
