"""Filters that several roles use."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

#: What the programs that fetch write before a reason: apt and mmdebstrap, pip, Docker and uv.
#: And what is wrong with a disk.
REASON = re.compile(
    r"^[EW]: |No space left on device|Read-only file system|ERROR|Could not fetch|Looking in indexes|"
    r"Error response from daemon|^(?:error|fatal): ",
)
#: Characters of a reason in a message.
MOST_OF_REASON = 600


def python_problem(need: str) -> str:
    """Return why this controller's Python cannot run the roles; empty if it can."""
    # ansible-core refuses an older one, but not the release candidate of 3.11 that Ubuntu 22.04 packages.
    if sys.version_info >= (3, 11, 0, "final"):
        return ""
    return f"This controller has Python {platform.python_version()}, {need}"


def apt_login(address: str) -> str:
    """Return a line of apt's auth.conf for the user and the password in an address; empty without them."""
    match = re.fullmatch(r"(https?://)([^/@:]*)(?::([^/@]*))?@([^/]+)(/.*)?", address)
    if not match:
        return ""
    scheme, user, password, host, path = match.groups()
    # Without its scheme apt gives a login to https alone.
    machine = ("" if scheme == "https://" else scheme) + host + (path or "")
    return f"machine {machine} login {unquote(user)} password {unquote(password or '')}"


def without_login(address: str) -> str:
    """Return the address without the user and the password that it may hold."""
    return re.sub("//[^/@]*@", "//", address)


def fetch_reason(result: Mapping[str, Any]) -> str:
    """Return why a task with the network failed: one line, in the words of its program, without logins."""
    failed = next((each for each in result.get("results") or [] if each.get("failed")), result)
    lines = [
        line.strip()
        for name in ("stderr", "stdout", "msg")
        for line in str(failed.get(name) or "").splitlines()
        if line.strip()
    ]
    reasons = [line for line in lines if REASON.search(line)] or lines[:1]
    text = " ".join(dict.fromkeys(reasons))
    text = re.sub(r"//[^/@\s]*@", "//", text)
    return (text if len(text) <= MOST_OF_REASON else text[:MOST_OF_REASON] + "…").rstrip(
        ". "
    ) or "no reason given"


def answers(lines: Iterable[str]) -> dict[str, str]:
    """Return the answers of a probe, lines of `key value`, by key. A key without a value has an empty one."""
    rows = (line.partition(" ") for line in lines)
    return {key: value.strip() for key, _, value in rows}


def release(facts: Mapping[str, Any]) -> str:
    """Return the distribution and its release as one name, such as `Debian 12` or `Ubuntu 24.04`."""
    name = facts.get("distribution", "")
    version = "distribution_version" if name == "Ubuntu" else "distribution_major_version"
    return f"{name} {facts.get(version, '')}"


def unsupported(facts: Mapping[str, Any], role: str, releases: Sequence[str]) -> str:
    """Return why a role does not run on a host, for a sentence that begins with its name; else empty."""
    kernel = str(facts.get("kernel", "")).lower()
    if "microsoft" in kernel:
        return (
            f"runs in WSL (kernel {kernel}), where Windows owns the driver and the cards: {role} sets up "
            "machines that run Linux themselves. Nothing was changed. Install the driver in Windows, or "
            "take another host."
        )
    if kernel.endswith("-tegra"):
        return (
            f"is a Jetson (kernel {kernel}), whose driver is a part of NVIDIA's JetPack: {role} sets up "
            "machines with NVIDIA cards on the PCI bus, or with none. Nothing was changed."
        )
    if release(facts) not in releases:
        names = [name.split() for name in releases]
        families = {family: [version for name, version in names if name == family] for family, _ in names}
        texts = [f"{family} {_and(versions)}" for family, versions in families.items()]
        return (
            f"runs {facts.get('distribution', '')} {facts.get('distribution_version', '')}: "
            f"{role} supports {', '.join(texts)}."
        )
    return ""


#: A list of apt, as apt's errors and grep name it.
APT_LIST = re.compile(r"/etc/apt/[^\s:()',]+\.(?:list|sources)\b")
#: Lists of the distribution itself: without them apt installs nothing.
OWN_LISTS = ("sources.list", "debian.sources", "ubuntu.sources")


def apt_problem(errors: Iterable[str], named: Iterable[str]) -> str:
    """Return which lists of apt an error is about, and the command that puts them aside; else empty.

    `errors` is what apt printed, `named` are lines `names ADDRESS FILE`: the lists that hold its addresses.
    """
    lists = [path for line in errors if line.startswith("E: ") for path in APT_LIST.findall(line)]
    lists += [line.split()[-1] for line in named if line.startswith("names ")]
    lists = sorted(set(lists))
    if not lists:
        return ""
    aside = [path for path in lists if path.rsplit("/", 1)[1] not in OWN_LISTS]
    text = f"The entry is in {_and(lists)}: correct it"
    if aside:
        text += f", or put it aside (mv {aside[-1]} {aside[-1]}.disabled)"
    return text + ", and run again."


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


class FilterModule:
    """The filters of the role common."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "common_answers": answers,
            "common_apt_login": apt_login,
            "common_fetch_reason": fetch_reason,
            "common_apt_problem": apt_problem,
            "common_python_problem": python_problem,
            "common_release": release,
            "common_unsupported": unsupported,
            "common_without_login": without_login,
        }
