#!/usr/bin/python
"""Files and folders of a role in one task, where one task for each would take a second each."""

from __future__ import annotations

import difflib
import grp
import os
import pwd
import stat
import tempfile
from base64 import b64decode
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: common_files
short_description: Write, make and remove files and folders, in order
description:
  - For the roles of train-classifier.
  - A file is replaced at once, and at no time more accounts read it than its mode says.
  - A link in the place of a file is replaced, one in the place of a folder is followed.
options:
  files:
    description: What shall be there. C(owner) and C(group) are root unless named.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: The absolute path., type: path, required: true}
      state: {description: What it is., type: str, choices: [file, directory, absent], default: file}
      content: {description: The content of a file., type: str}
      base64: {description: The content of a file that is no text., type: str}
      source: {description: A file of the host to copy instead., type: path}
      owner: {description: The owner., type: str, default: root}
      group: {description: The group., type: str, default: root}
      mode: {description: The mode; 0644 for a file and 0755 for a folder unless named., type: str}
      needed: {description: Whether the entry counts., type: bool, default: true}
"""
SUBOPTIONS = {
    "path": {"type": "path", "required": True},
    "state": {"choices": ["file", "directory", "absent"], "default": "file"},
    # A task whose content is secret has no_log or `diff: false`, too.
    "content": {"type": "str", "no_log": True},
    "base64": {"type": "str", "no_log": True},
    "source": {"type": "path"},
    "owner": {"default": "root"},
    "group": {"default": "root"},
    "mode": {"type": "str"},
    "needed": {"type": "bool", "default": True},
}


def attributes(path: Path, *, follow: bool) -> tuple[int, int, int, int] | None:
    """Return kind, mode, owner and group of a path; None when it does not exist."""
    try:
        status = path.stat() if follow else path.lstat()
    except FileNotFoundError:
        return None
    return stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def identity(entry: dict[str, Any], *, check: bool) -> tuple[int, int]:
    """Return the numbers of owner and group; in check mode -1 for one that an earlier task would make."""
    numbers = []
    for name, number in ((entry["owner"], pwd.getpwnam), (entry["group"], grp.getgrnam)):
        try:
            numbers.append(number(name)[2])
        except KeyError:
            if not check:
                raise
            numbers.append(-1)
    return numbers[0], numbers[1]


def write(path: Path, content: bytes, mode: int, owner: int, group: int) -> None:
    """Replace a file at once."""
    number, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            os.fchown(number, owner, group)
            os.fchmod(number, mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def provide_file(
    entry: dict[str, Any], mode: int, owner: int, group: int, *, check: bool
) -> dict[str, str] | None:
    """Write a file that differs; what differs, or None."""
    path = Path(entry["path"])
    if entry["source"]:
        content = Path(entry["source"]).read_bytes()
    else:
        content = b64decode(entry["base64"]) if entry["base64"] else (entry["content"] or "").encode()
    there = attributes(path, follow=False)
    if there and there[0] == stat.S_IFDIR:
        raise IsADirectoryError(f"{path} is a folder")
    before = path.read_bytes() if there and there[0] == stat.S_IFREG else b""
    if there == (stat.S_IFREG, mode, owner, group) and before == content:
        return None
    if not check:
        write(path, content, mode, owner, group)
    if entry["source"]:
        return {"prepared": f"{path}: copied from {entry['source']}\n"}
    texts = (text.decode("utf-8", "replace").splitlines(keepends=True) for text in (before, content))
    name = str(path)
    return {
        "prepared": "".join(difflib.unified_diff(*texts, name, name)) or f"{name}: owner, group or mode\n"
    }


def provide_folder(
    entry: dict[str, Any], mode: int, owner: int, group: int, *, check: bool
) -> dict[str, str] | None:
    """Make a folder, or correct it; what differs, or None."""
    path = Path(entry["path"])
    there = attributes(path, follow=True)
    if there == (stat.S_IFDIR, mode, owner, group):
        return None
    if there and there[0] != stat.S_IFDIR:
        raise NotADirectoryError(f"{path} is no folder")
    if not check:
        # Closed until it has its owner.
        path.mkdir(mode=mode & 0o700, parents=True, exist_ok=True)
        os.chown(path, owner, group)
        path.chmod(mode)
    return {"prepared": f"{path}: {'owner, group or mode' if there else 'made'}\n"}


def provide(entry: dict[str, Any], *, check: bool) -> dict[str, str] | None:
    """Provide one entry; what differs, or None."""
    path = Path(entry["path"])
    if entry["state"] == "absent":
        if attributes(path, follow=False) is None:
            return None
        if not check:
            path.unlink()
        return {"prepared": f"{path}: removed\n"}
    folder = entry["state"] == "directory"
    mode = int(entry["mode"] or ("0755" if folder else "0644"), 8)
    owner, group = identity(entry, check=check)
    return (provide_folder if folder else provide_file)(entry, mode, owner, group, check=check)


class QuietModule(AnsibleModule):  # type: ignore[misc]
    """A module that does not write its arguments, the contents of files among them, into the host's log.

    Ansible itself leaves out only options that are not within a list.
    """

    def _log_invocation(self) -> None:
        return


def main() -> None:
    """Provide the entries in order; `paths` names those that changed."""
    module = QuietModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True, "options": SUBOPTIONS}
        },
        supports_check_mode=True,
    )
    differences: dict[str, dict[str, str]] = {}
    # Parents of a folder are open to everybody, also when root's umask says otherwise.
    os.umask(0o022)
    for entry in filter(lambda entry: entry["needed"], module.params["files"]):
        try:
            difference = provide(entry, check=module.check_mode)
        except (OSError, KeyError, ValueError) as error:
            module.fail_json(msg=f"{entry['path']}: {error}", paths=list(differences))
        if difference:
            differences[entry["path"]] = difference
    # Without diff mode, contents are in no result.
    shown = {"diff": list(differences.values())} if module._diff else {}
    module.exit_json(changed=bool(differences), paths=list(differences), **shown)


if __name__ == "__main__":
    main()
