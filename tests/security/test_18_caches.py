"""Row 18: /cache belongs to one repository of one user, and a checkout has no say in which it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from worker_support import machine

from train_classifier.request import checkout


@pytest.mark.engine
def test_18_repository_does_not_see_the_cache_of_another() -> None:
    with machine() as host:
        write = "open('/cache/code.py', 'w').write('theirs'); open('artefacts/x', 'w')"
        assert host.train(write, repository=_key("a"))[1]["outcome"] == "trained"
        check = "import os; assert not os.path.exists('/cache/code.py'); open('artefacts/x', 'w')"
        assert host.train(check, repository=_key("b"))[1]["outcome"] == "trained"
        again = "assert open('/cache/code.py').read() == 'theirs'; open('artefacts/x', 'w')"
        assert host.train(again, repository=_key("a"))[1]["outcome"] == "trained"


def _key(letter: str) -> dict[str, str | None]:
    return {"name": "repo", "key": letter * 16, "commit": None, "dirty": None}


def test_18_checkout_cannot_choose_its_key(tmp_path: Path) -> None:
    before = checkout.describe(tmp_path)[0].key
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text('[remote "origin"]\n\turl = https://git.example/other/repo\n')
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    (tmp_path / "train-classifier.toml").write_text("")
    assert checkout.describe(tmp_path)[0].key == before


def test_18_reused_runner_folder_gets_a_key_for_each_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner checks out one/repo and other/repo into the same folder."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    keys = set()
    for name in ("one/repo", "other/repo"):
        monkeypatch.setenv("GITHUB_REPOSITORY", name)
        keys.add(checkout.describe(tmp_path)[0].key)
    monkeypatch.delenv("GITHUB_ACTIONS")
    keys.add(checkout.describe(tmp_path)[0].key)
    assert len(keys) == 3


def test_18_users_and_folders_have_separate_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    keys = {checkout.describe(folder)[0].key for folder in folders}
    monkeypatch.setattr(checkout, "user_name", lambda: "somebody-else")
    keys |= {checkout.describe(folder)[0].key for folder in folders}
    assert len(keys) == 4
