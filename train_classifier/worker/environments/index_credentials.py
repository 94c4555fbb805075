"""The caller's passwords of package indexes: a build gets those of the indexes that the host configures."""

import netrc
import os
import re
import stat
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

#: Variables that name indexes, in uv's words. What a requirements file names is the checkout's choice.
INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
MOST_BYTES = 1 << 20
#: A login of the index with a name. uv sends it to each index of that name, also to one of a checkout.
_NAMED_LOGIN = re.compile(r"UV_INDEX_.*_(?:USERNAME|PASSWORD)\Z")
_NAMED_INDEX = re.compile(r"(?<![^\s])(?P<name>[A-Za-z0-9._-]{1,100})=(?P<scheme>https?://)(?=(?P<rest>\S+))")


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


def put_logins(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a build with each login of an index by name in the address of that index."""
    result = {name: value for name, value in variables.items() if not _NAMED_LOGIN.match(name)}

    def put_login(match: "re.Match[str]") -> str:
        key = f"UV_INDEX_{re.sub('[^A-Z0-9]', '_', match['name'].upper())}"
        login = [variables.get(f"{key}_{word}", "") for word in ("USERNAME", "PASSWORD")]
        has_login = "@" in re.split(r"[/?#]", match["rest"], maxsplit=1)[0]
        if has_login or not any(login):
            return match[0]
        return f"{match[0]}{':'.join(urllib.parse.quote(word, safe='') for word in login)}@"

    for name in ("UV_DEFAULT_INDEX", "UV_INDEX"):
        if name in result:
            result[name] = _NAMED_INDEX.sub(put_login, result[name])
    return result


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
    except netrc.NetrcParseError as error:
        # Its message quotes a word, which may be of a password.
        return "", f"{file} cannot be read: near line {error.lineno} it is not of the form of a netrc"
    except (OSError, UnicodeError) as error:
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
