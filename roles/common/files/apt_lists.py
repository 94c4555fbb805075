"""Disable a repository's entries in other lists of apt, and restore them. Runs on the host.

apt_lists.py disable FOLDER OWN ROLE ADDRESS…
    a list of nothing else is moved to FOLDER, else its lines become comments
apt_lists.py restore FOLDER OWN ROLE
    the reverse
An entry is meant if its line holds an ADDRESS. OWN is the list of the role itself, which stays.
Prints each file that it changed.
"""

import os
import re
import shutil
import sys
from pathlib import Path

APT = Path("/etc/apt")


def mark(role):
    """Return the beginning of a line that was disabled. Earlier releases wrote the same."""
    return f"# put out by the role {role}: "


def place(role):
    """Return the mark of a line that replaces the entry disabled before it."""
    return f"# put by the role {role} in its place:"


def read(path):
    """Return the lines of a list. Its bytes need not be UTF-8."""
    return path.read_bytes().decode("utf-8", "surrogateescape").split("\n")


def _commented(lines, role):
    return [line if line.startswith("#") else mark(role) + line for line in lines]


def _stanza(lines, role, addresses):
    """Return a stanza of a .sources file without the repository, as comments or with its other URIs."""
    field = []
    for number, line in enumerate(lines):
        if line.lower().startswith("uris:"):
            field = [number]
        elif field and line[:1] in (" ", "\t") and number == field[-1] + 1:
            field.append(number)
    uris = " ".join(lines[number] for number in field).partition(":")[2].split()
    others = [uri for uri in uris if not any(address in uri for address in addresses)]
    if len(others) == len(uris):
        return lines
    if not others:
        return _commented(lines, role)
    first, last = field[0], field[-1] + 1
    put = [place(role), f"URIs: {' '.join(others)}"]
    return lines[:first] + [mark(role) + line for line in lines[first:last]] + put + lines[last:]


def without(name, lines, role, addresses):
    """Return the lines of a list without the repository."""
    if not name.endswith(".sources"):
        entry = re.compile(rf"\s*deb\b.*({'|'.join(map(re.escape, addresses))})")
        return [mark(role) + line if entry.match(line) else line for line in lines]
    answer, stanza = [], []
    for line in [*lines, ""]:
        if line.strip():
            stanza.append(line)
        else:
            answer += [*_stanza(stanza, role, addresses), line]
            stanza = []
    return answer[:-1]


def restored(lines, role):
    """Return the lines as they were before."""
    answer, skip = [], 0
    for line in lines:
        if skip:
            skip -= 1
        elif line == place(role):
            skip = 1
        else:
            answer.append(line[len(mark(role)) :] if line.startswith(mark(role)) else line)
    return answer


def has_entries(lines):
    """Return whether the lines hold anything that apt reads."""
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def write(path, lines):
    """Replace a file at once; mode and owner stay."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    shutil.copystat(path, new)
    os.chown(new, path.stat().st_uid, path.stat().st_gid)
    new.replace(path)


def disable(paths, folder, role, addresses):
    """Disable the repository in these lists; return the changed lists."""
    changed = []
    for path in paths:
        if not path.is_file():
            continue
        before = read(path)
        after = without(path.name, before, role, addresses)
        if after == before:
            continue
        if has_entries(after) or path.name == "sources.list":
            write(path, after)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(path, folder / path.name)
        changed.append(str(path))
    return changed


def restore(paths, disabled, folder, role):
    """Undo disable; return the changed lists. A list that was made again meanwhile stays."""
    changed = []
    for path in paths:
        before = read(path) if path.is_file() else []
        after = restored(before, role)
        if after != before:
            write(path, after)
            changed.append(str(path))
    for path in sorted(disabled.glob("*")):
        if not (folder / path.name).exists():
            shutil.move(path, folder / path.name)
            changed.append(str(folder / path.name))
    return changed


def main(verb, disabled, own, role, *addresses):
    """Change all lists but `own`."""
    folder = APT / "sources.list.d"
    paths = [APT / "sources.list", *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))]
    paths = [path for path in paths if str(path) != own]
    if verb == "disable":
        changed = disable(paths, Path(disabled), role, addresses)
    else:
        changed = restore(paths, Path(disabled), folder, role)
    print("\n".join(changed))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
