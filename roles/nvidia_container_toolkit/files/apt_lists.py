"""Disable the entries of NVIDIA's repository in other lists of apt, and restore them. Runs on the host.

apt_lists.py disable FOLDER OWN  a list of nothing else is moved to FOLDER, else its lines become comments
apt_lists.py restore FOLDER OWN  the reverse
Prints each file that it changed.
"""

import os
import re
import shutil
import sys
from pathlib import Path

NVIDIA = "nvidia.github.io"
MARK = "# put out by the role nvidia_container_toolkit: "
#: The line after it replaces the entry that was disabled before it. Earlier releases wrote these marks, too.
PLACE = "# put by the role nvidia_container_toolkit in its place:"
APT = Path("/etc/apt")


def _commented(lines):
    return [MARK + line for line in lines]


def _stanza(lines):
    """Return a stanza of a .sources file without NVIDIA's repository, as comments or with its other URIs."""
    field = []
    for number, line in enumerate(lines):
        if line.lower().startswith("uris:"):
            field = [number]
        elif field and line[:1] in (" ", "\t") and number == field[-1] + 1:
            field.append(number)
    uris = " ".join(lines[number] for number in field).partition(":")[2].split()
    others = [uri for uri in uris if NVIDIA not in uri]
    if len(others) == len(uris):
        return lines
    if not others:
        return [line if line.startswith("#") else MARK + line for line in lines]
    first, last = field[0], field[-1] + 1
    put = [PLACE, f"URIs: {' '.join(others)}"]
    return lines[:first] + _commented(lines[first:last]) + put + lines[last:]


def without(name, lines):
    """Return the lines of a list without NVIDIA's repository."""
    if not name.endswith(".sources"):
        return [MARK + line if re.match(rf"\s*deb\b.*{re.escape(NVIDIA)}", line) else line for line in lines]
    answer, stanza = [], []
    for line in [*lines, ""]:
        if line.strip():
            stanza.append(line)
        else:
            answer += [*_stanza(stanza), line]
            stanza = []
    return answer[:-1]


def restored(lines):
    """Return the lines as they were before."""
    answer, skip = [], 0
    for line in lines:
        if skip:
            skip -= 1
        elif line == PLACE:
            skip = 1
        else:
            answer.append(line[len(MARK) :] if line.startswith(MARK) else line)
    return answer


def has_entries(lines):
    """Return whether the lines hold anything that apt reads."""
    return any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def write(path, lines):
    """Replace a file at once; mode and owner stay."""
    new = path.with_name(f".{path.name}.new")
    new.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    shutil.copystat(path, new)
    os.chown(new, path.stat().st_uid, path.stat().st_gid)
    new.replace(path)


def disable(paths, folder):
    """Disable NVIDIA's repository in these lists; return the changed lists."""
    changed = []
    for path in paths:
        if not path.is_file() or NVIDIA not in path.read_text(encoding="utf-8"):
            continue
        before = path.read_text(encoding="utf-8").splitlines()
        after = without(path.name, before)
        if after == before:
            continue
        if has_entries(after) or path.name == "sources.list":
            write(path, after)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(path, folder / path.name)
        changed.append(str(path))
    return changed


def restore(paths, disabled, folder):
    """Undo disable; return the changed lists. A list that was made again meanwhile stays."""
    changed = []
    for path in paths:
        if not path.is_file() or MARK not in path.read_text(encoding="utf-8"):
            continue
        write(path, restored(path.read_text(encoding="utf-8").splitlines()))
        changed.append(str(path))
    for path in sorted(disabled.glob("*")):
        if not (folder / path.name).exists():
            shutil.move(path, folder / path.name)
            changed.append(str(folder / path.name))
    return changed


def main(verb, disabled, own):
    """Change all lists but `own`."""
    folder = APT / "sources.list.d"
    paths = [APT / "sources.list", *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))]
    paths = [path for path in paths if str(path) != own]
    changed = disable(paths, Path(disabled)) if verb == "disable" else restore(paths, Path(disabled), folder)
    print("\n".join(changed))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
