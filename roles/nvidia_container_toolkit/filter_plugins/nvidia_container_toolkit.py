"""Filters of the role nvidia_container_toolkit: a key's fingerprint, what a merge added."""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib


def fingerprint(key: str) -> str:
    """The fingerprint (40 hex digits) of an armoured OpenPGP version 4 public key; "" for anything else.

    RFC 4880, 12.2: SHA-1 of 0x99, the packet's length in two octets, and the packet's body.
    Done here because a minimal host has no gpg.
    """
    lines = key.replace("\r", "").strip().splitlines()
    if not lines or "BEGIN PGP PUBLIC KEY BLOCK" not in lines[0] or "" not in lines:
        return ""
    body = [line for line in lines[lines.index("") + 1 :] if line and line[0] not in "=-"]
    try:
        data = base64.b64decode("".join(body), validate=True)
        tag = data[0]
        if tag & 0x40:
            first = data[1]
            if first < 192:
                start, length = 2, first
            elif first < 224:
                start, length = 3, ((first - 192) << 8) + data[2] + 192
            else:
                start, length = 6, int.from_bytes(data[2:6], "big")
            kind = tag & 0x3F
        else:
            size = (1, 2, 4)[tag & 3]
            start, length, kind = 1 + size, int.from_bytes(data[1 : 1 + size], "big"), (tag >> 2) & 0x0F
        packet = data[start : start + length]
        if kind != 6 or packet[0] != 4:
            return ""
    except (IndexError, binascii.Error):
        return ""
    return hashlib.sha1(b"\x99" + length.to_bytes(2, "big") + packet).hexdigest().upper()


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
