"""Disable a repository's entries in other lists of apt, and restore them. Runs on the host.

apt_lists.py disable FOLDER OWN ROLE ADDRESS…
    a list of nothing else is moved to FOLDER, else its lines become comments
apt_lists.py restore FOLDER OWN ROLE
    the reverse
An entry is meant if its line, without a comment, holds an ADDRESS. OWN, the role's own list, stays.
Prints each file that it changed.
"""

import glob
import os
import re
import shutil
import sys
from pathlib import Path

APT = Path("/etc/apt")
LISTS = Path("/var/lib/apt/lists")


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
        elif field and line[:1] in (" ", "\t", "#") and number == field[-1] + 1:
            field.append(number)
    text = " ".join(lines[number] for number in field if not lines[number].startswith("#"))
    uris = text.partition(":")[2].split()
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
        entry = re.compile(rf"\s*deb\b[^#]*({'|'.join(map(re.escape, addresses))})")
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
    answer, replaced = [], False
    for line in lines:
        if replaced and line.startswith("URIs: "):
            replaced = False
            continue
        replaced = line.rstrip() == place(role)
        if not replaced:
            answer.append(line[len(mark(role)) :] if line.startswith(mark(role)) else line)
    return answer


def joined(lines):
    """Return the content of a list; the reverse of read."""
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def has_entries(lines):
    """Return whether the lines hold anything that apt reads."""
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def write(path, content, like):
    """Replace a file at once, with the mode and the owner of the file `like`."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    # Some lists hold a password.
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        os.fchown(file.fileno(), like.stat().st_uid, like.stat().st_gid)
    shutil.copystat(like, new)
    new.replace(path)


def copy(path, target):
    """Copy a list, a link as a link. Both folders may be on different file systems."""
    if not path.is_symlink():
        write(target, path.read_bytes(), path)
        return
    new = target.with_name(f".{target.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(path.readlink())
    new.replace(target)


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
        stays = has_entries(after) or path.name == "sources.list"
        if path.is_symlink() or not stays:
            folder.mkdir(parents=True, exist_ok=True)
            copy(path, folder / path.name)
        if stays:
            write(path, joined(after), path)
        else:
            path.unlink()
        changed.append(str(path))
    return changed


def forget(path):
    """Remove the signatures that apt keeps of a list's repositories.

    The role's key made them. Where a list needs no key (trusted=yes), apt would go on asking for it.
    """
    text = "\n".join(line for line in read(path) if not line.startswith("#"))
    for address in re.findall(r"\b[a-z]+:/+(\S+)", text):
        name = address.rpartition("@")[2].rstrip("/").replace("_", "%5f").replace("/", "_")
        for file in LISTS.glob(f"*{glob.escape(name)}_*Release*"):
            file.unlink(missing_ok=True)


def restore(paths, disabled, folder, role):
    """Undo disable; return the changed lists. A list that was made again meanwhile stays."""
    changed = []
    for path in paths:
        before = read(path) if path.is_file() else []
        after = restored(before, role)
        if after != before:
            write(path, joined(after), path)
            changed.append(str(path))
    for saved in sorted(disabled.glob("*")):
        path = next((path for path in paths if path.name == saved.name), folder / saved.name)
        # In the place of a link lies the list that disable made of it.
        if not os.path.lexists(path) or (saved.is_symlink() and str(path) in changed):
            copy(saved, path)
            saved.unlink()
            changed.append(str(path))
    return list(dict.fromkeys(changed))


def main(verb, disabled, own, role, *addresses):
    """Change all lists but `own`."""
    os.umask(0o022)
    folder = APT / "sources.list.d"
    paths = [APT / "sources.list", *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))]
    paths = [path for path in paths if str(path) != own]
    if verb == "disable":
        changed = disable(paths, Path(disabled), role, addresses)
    else:
        changed = restore(paths, Path(disabled), folder, role)
        for path in changed:
            forget(Path(path))
    print("\n".join(changed))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
