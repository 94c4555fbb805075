"""Filters that several roles use."""

from __future__ import annotations

import re
from urllib.parse import unquote


def apt_login(address: str) -> str:
    """A line of apt's auth.conf for the user and the password in an address; empty without one."""
    match = re.fullmatch(r"(https?://)([^/@:]*)(?::([^/@]*))?@([^/]+)(/.*)?", address)
    if not match:
        return ""
    scheme, user, password, host, path = match.groups()
    # Without its scheme apt gives a login to https alone.
    machine = ("" if scheme == "https://" else scheme) + host + (path or "")
    return f"machine {machine} login {unquote(user)} password {unquote(password or '')}"


class FilterModule:
    """The filter common_apt_login."""

    def filters(self) -> dict:
        return {"common_apt_login": apt_login}
