"""Role docker_engine recognises podman's replacement of docker before it installs anything beside it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

LOOK = Path(__file__).parents[3] / "roles/docker_engine/tasks/look.yml"


@pytest.mark.parametrize(
    ("program", "text", "client"),
    [
        # As the package podman-docker of Debian and Ubuntu has it.
        (
            "docker",
            '#!/bin/sh\necho "Emulate Docker CLI using podman." >&2\nexec /usr/bin/podman "$@"\n',
            True,
        ),
        ("podman", "#!/bin/sh\n", True),
        ("docker", "#!/bin/sh\n", False),
    ],
)
def test_client_is_recognised(tmp_path: Path, program: str, text: str, client: bool) -> None:
    (tmp_path / program).write_text(text)
    (tmp_path / program).chmod(0o755)
    if program != "docker":
        (tmp_path / "docker").symlink_to(program)
    shell = next(task["ansible.builtin.shell"] for task in yaml.safe_load(LOOK.read_text()))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MARKER": "/none", "PACKAGES": "/none"}
    done = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True, check=False)
    assert ("client podman" in done.stdout.splitlines()) == client, done
