"""Fixtures of the tests that train on this machine, also over ssh on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loopback.sshd import Sshd
from loopback.world import World, make_world


@pytest.fixture
def world(base_image: str) -> Iterator[World]:
    """A host and a repository in folders of this test."""
    yield from make_world(base_image)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """An sshd on loopback."""
    daemon = Sshd(tmp_path_factory.mktemp("sshd"))
    yield daemon
    daemon.stop()
