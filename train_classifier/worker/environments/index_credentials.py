"""The caller's passwords of package indexes: a build gets those of the indexes that the host configures."""

import netrc
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

#: Variables that name indexes, in uv's words. What a requirements file names is the checkout's choice.
INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
MOST_BYTES = 1 << 20


def path() -> Path:
    """Return where the caller's netrc lies."""
    return Path(os.environ.get("NETRC") or os.path.expanduser("~/.netrc"))


def hosts_of(variables: Mapping[str, str]) -> set[str]:
    """Return the names of the hosts of all indexes that the variables of a build name."""
    index_hosts = set()
    for name in INDEXES:
        for address in re.findall(r"https?://[^\s,]+", variables.get(name, ""), re.IGNORECASE):
            authority = re.split(r"[/?#]", address.partition("://")[2], maxsplit=1)[0]
            host = authority.rpartition("@")[2].lower()
            index_hosts.add(host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0])
    return index_hosts - {""}


def entries_for(variables: Mapping[str, str]) -> tuple[str, str]:
    """Return the netrc for a build, and what is wrong with the caller's; each "" for nothing.

    An entry `default` is never among them: it would be sent to any host.
    """
    hosts = hosts_of(variables)
    file = path()
    if not hosts or not file.exists():
        return "", ""
    try:
        if not stat.S_ISREG(file.stat().st_mode) or file.stat().st_size > MOST_BYTES:
            return "", f"{file} is not a regular file of at most {MOST_BYTES} bytes"
        logins = netrc.netrc(str(file)).hosts
    except (OSError, netrc.NetrcParseError, UnicodeError) as error:
        return "", f"{file} cannot be read: {error}"
    text = ""
    for host in sorted(hosts & set(logins) - {"default"}):
        login, _, password = logins[host]
        text += f"machine {_quoted(host)} login {_quoted(login or '')} password {_quoted(password or '')}\n"
    return text, ""


def _quoted(value: str) -> str:
    if re.fullmatch(r'[^\s"\\#][^\s"\\]*', value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
