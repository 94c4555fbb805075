"""Filters of the role nvidia_container_toolkit: a key's fingerprint, the origin of packages, daemon.json."""

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


def _order(version: str) -> tuple[list[int], bool, list[int]]:
    """A key that sorts the toolkit's versions: 1.18.0~rc.1-1 before 1.18.0-1 before 1.18.1-1."""
    upstream, _, revision = version.partition("-")
    final, tilde, _ = upstream.partition("~")
    numbers = [int(number) for number in re.findall(r"\d+", final)]
    return numbers, not tilde, [int(number) for number in re.findall(r"\d+", revision)]


def decision(lines: list[str], packages: list[str], target: str, minimum: str) -> dict:
    """Return who installed the toolkit and what to do, from the lines of tasks/inspect.yml.

    `kept`: somebody else installed it, and it works and is new enough, so that it stays. Otherwise
    `missing` are the packages to install in the version `target`, `hold` those to hold afterwards, and
    `problem` says why that must not be.
    """
    answers: dict[str, list[list[str]]] = {}
    for line in lines:
        word, *fields = line.split()
        answers.setdefault(word, []).append(fields)
    now = {
        name: (version, status.startswith("h"))
        for status, name, version in (row for row in answers.get("now", []) if len(row) == 3)
        if status[1:2] == "i"
    }
    before = {row[1]: row[0] for row in answers.get("before", []) if len(row) == 3}
    if "brought" in answers:
        brought = {row[0]: row[1] for row in answers["brought"] if len(row) == 2}
    elif "recorded" in answers:
        # Earlier releases recorded only what was there before: a newer version is not theirs.
        earlier = {name for name, status in before.items() if status[1:2] == "i"}
        brought = {
            name: version
            for name, (version, _) in now.items()
            if name not in earlier and _order(version) <= _order(target)
        }
    else:
        brought = {}
    if "holding" in answers:
        our_holds = {row[0] for row in answers.get("holds", []) if row}
    else:
        held_before = {name for name, status in before.items() if status.startswith("h")}
        our_holds = set(brought) - held_before
    own = {name for name, (version, _) in now.items() if brought.get(name) == version}
    versions = {version for version, _ in now.values()}
    complete = set(now) == set(packages) and len(versions) == 1
    new_enough = complete and _order(next(iter(versions)).split("-")[0]) >= _order(minimum)
    keep = bool(complete and new_enough and ["yes"] in answers.get("works", []) and set(now) - own)
    missing = [name for name in packages if name not in now or now[name][0] != target]
    foreign_holds = sorted(name for name in now if now[name][1] and name not in our_holds)
    locked = [name for name in foreign_holds if name in missing]
    newer = [
        name for name in missing if name in now and name not in own and _order(now[name][0]) > _order(target)
    ]
    problem = ""
    if not keep and locked:
        holds = ", ".join(f"{name} {now[name][0]}" for name in locked)
        problem = (
            f"an administrator holds {holds}, which is not a whole, working toolkit of {minimum} or newer: "
            f"release it (apt-mark unhold {' '.join(locked)}) and run again"
        )
    elif not keep and newer:
        packages_text = ", ".join(f"{name} {now[name][0]}" for name in newer)
        problem = (
            f"{packages_text} is newer than {target}, and the toolkit does not work: repair it, or set "
            f"nvidia_container_toolkit_version to {now[newer[0]][0]}, and run again"
        )
    return {
        "kept": keep,
        "version": next(iter(versions)) if complete else "",
        "missing": [] if keep else missing,
        "hold": []
        if keep
        else [name for name in packages if not now.get(name, ("", False))[1] and name in {*missing, *own}],
        "downgrade": [name for name in missing if name in own and _order(now[name][0]) > _order(target)],
        "unhold": sorted(name for name in missing if name in now and now[name][1] and name in our_holds),
        "problem": problem,
        "ours": sorted(own),
        "purge": sorted(name for name in own if before.get(name, "")[1:2] != "i"),
        "our_holds": sorted(name for name in our_holds if name in now and now[name][1]),
    }


def lost(before: dict, after: dict) -> list[str]:
    """Return the keys of daemon.json that a merge changed and does not set."""
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
    """Return daemon.json (`current`) with the keys that the merge set as they were in `before`."""
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
            "nvidia_container_toolkit_decision": decision,
            "nvidia_container_toolkit_lost": lost,
            "nvidia_container_toolkit_unmerge": unmerge,
        }
