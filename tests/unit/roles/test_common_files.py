"""The module common_files: what it writes, makes and removes, what it reports, and that check mode changes nothing."""

from __future__ import annotations

import grp
import importlib.util
import os
import pwd
import stat
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hosts.play import ROOT

USER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("common_files", ROOT / "plugins/modules/common_files.py")
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def entry(path: Path, **options: Any) -> dict[str, Any]:
    values = {
        "state": "file",
        "content": None,
        "base64": None,
        "source": None,
        "mode": None,
        "owner": USER,
        "group": GROUP,
    }
    return {**values, "path": str(path), **options}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_file_is_written_once(module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert module.provide(entry(path, content="one\n"), check=True)
    assert not path.exists()
    assert module.provide(entry(path, content="one\n"), check=False)
    assert (path.read_text(), mode(path)) == ("one\n", 0o644)
    assert module.provide(entry(path, content="one\n"), check=False) is None
    difference = module.provide(entry(path, content="two\n"), check=True)
    assert "-one\n+two\n" in difference["prepared"] and path.read_text() == "one\n"
    assert module.provide(entry(path, content="one\n", mode="0600"), check=False)
    assert mode(path) == 0o600 and names(tmp_path) == ["file"]


def test_content_is_never_open_to_more_than_its_mode(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def replace(source: Path, target: Path) -> None:
        seen.append(mode(source))
        raise OSError("full")

    monkeypatch.setattr(Path, "replace", replace)
    for given in ("0600", "0640"):
        with pytest.raises(OSError, match="full"):
            module.provide(entry(tmp_path / "secret", content="x", mode=given), check=False)
    assert seen == [0o600, 0o640]
    assert names(tmp_path) == [], "the temporary file is removed"


def test_link_is_replaced_and_what_it_names_is_not_written(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    path = tmp_path / "file"
    path.symlink_to("precious")
    assert module.provide(entry(path, content="x"), check=False)
    assert not path.is_symlink() and path.read_text() == "x"
    path.unlink()
    path.symlink_to("precious")
    assert module.provide(entry(path, state="absent"), check=False)
    assert names(tmp_path) == ["precious"]
    assert module.provide(entry(path, state="absent"), check=False) is None


def test_file_is_copied_from_another(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"\x00\xff")
    copy = entry(tmp_path / "copy", source=str(tmp_path / "source"), mode="0755")
    assert module.provide(copy, check=False)
    assert (tmp_path / "copy").read_bytes() == b"\x00\xff" and mode(tmp_path / "copy") == 0o755
    assert module.provide(copy, check=False) is None


def test_folder_is_made_and_corrected(module: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "above/folder"
    assert module.provide(entry(path, state="directory", mode="2750"), check=True)
    assert not path.parent.exists()
    assert module.provide(entry(path, state="directory", mode="2750"), check=False)
    assert (mode(path), mode(path.parent)) == (0o2750, 0o755)
    (path / "kept").touch()
    assert module.provide(entry(path, state="directory", mode="0700"), check=False)
    assert mode(path) == 0o700 and (path / "kept").exists()
    assert module.provide(entry(path, state="directory", mode="0700"), check=False) is None


def test_other_kinds_are_refused(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="is a folder"):
        module.provide(entry(tmp_path / "folder", content="x"), check=False)
    with pytest.raises(OSError, match="is no folder"):
        module.provide(entry(tmp_path / "file", state="directory"), check=False)
    assert module.provide(entry(tmp_path / "file", content="x", owner="nobody-of-this-name"), check=True)
    with pytest.raises(KeyError, match="nobody-of-this-name"):
        module.provide(entry(tmp_path / "file", content="x", owner="nobody-of-this-name"), check=False)
