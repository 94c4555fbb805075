"""Row 6: what one repository builds, installs or names reaches no environment and no cache of another."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from index_server import Index, sdist, serve, wheel
from worker_site import Site, image_after, site, tmp_path, uv

from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.containers import package_layers
from train_classifier.worker.environments.stored_environments import Environment

__all__ = ["site", "tmp_path", "uv"]
pytestmark = pytest.mark.engine

ATTACKER, VICTIM = "a" * 16, "b" * 16
#: Writes its code over every copy of victim.py that it can reach, in place and by a new file.
POISON = """
import os
SEEN = []
for top in ("/train-classifier", "/tmp", "/opt", "/var/tmp"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if name == "victim.py":
                SEEN.append(path)
                for target in (path, path + ".new"):
                    try:
                        with open(target, "w") as file:
                            file.write("value = 'poisoned'\\n")
                    except OSError as error:
                        SEEN.append(str(error))
                try:
                    os.replace(path + ".new", path)
                except OSError as error:
                    SEEN.append(str(error))
"""
CLEAN = "value = 'clean'\n"
VALUE = "import victim; print(victim.value)"


@pytest.fixture
def index(site: Site, engine: docker.DockerClient) -> Iterator[Index]:
    """The index of the host, with a package that everybody uses and one of an attacker."""
    with serve(engine) as new_index:
        new_index.add(wheel("victim", "1.0", CLEAN), sdist("evil", "1.0", POISON))
        settings = {"UV_DEFAULT_INDEX": new_index.url, "no_proxy": new_index.host}
        site.host = dataclasses.replace(site.host, environment=settings)
        yield new_index


def hashed_requirement(index: Index) -> str:
    """Return a requirement with its hash."""
    ((name, content),) = ((name, data) for name, data in index.files.items() if name.startswith("victim"))
    assert name
    return f"victim==1.0 --hash=sha256:{hashlib.sha256(content).hexdigest()}\n"


def build_environment(
    site: Site, text: str, image: str | None = None, repository: str = "0" * 16, kind: str = "auto"
) -> Environment:
    """Make an environment from the test's index alone: the image lacks distutils, which setuptools would bring."""
    return site.prepare(
        f"{text}\nsetuptools ; python_version < '3'\n", image, repository=repository, kind=kind
    )


def caches(site: Site) -> list[str]:
    return sorted(path.name.partition("-repository-")[2] for path in site.store.uv_caches.iterdir())


def test_06_build_back_end_cannot_change_wheels_of_others(site: Site, index: Index) -> None:
    """Row 6 as reported: B's requirements are pinned by hash, and ran A's code."""
    build_environment(site, "victim\n", repository=VICTIM)
    attack = build_environment(site, "victim\nevil\n", repository=ATTACKER)
    report = site.run(site.find(), attack, "import evil; print(evil.seen)")
    assert "victim.py" in report, "the attack did not reach even its own cache"
    later = build_environment(site, hashed_requirement(index), repository=VICTIM)
    assert site.run(site.find(), later, VALUE) == "clean\n"
    # Nobody else gets the attacker's environment.
    same = build_environment(site, "victim\nevil\n", repository=VICTIM)
    assert same.hash != attack.hash
    assert caches(site) == ["", ATTACKER, VICTIM]


def test_06_only_wheels_are_shared(site: Site, index: Index) -> None:
    first = build_environment(site, "victim", repository=ATTACKER)
    requests = len(index.requests)
    assert build_environment(site, "victim", repository=VICTIM).hash == first.hash
    assert (len(index.requests), caches(site)) == (requests, [""])


def test_06_newest_version_is_built_instead_of_taking_an_older_wheel(site: Site, index: Index) -> None:
    index.add(wheel("growing", "1.0"), sdist("growing", "2.0", ""))
    assert "growing==2.0" in build_environment(site, "growing", repository=VICTIM).packages
    # A version with a wheel needs no build, even if an older one does.
    index.add(wheel("growing", "3.0"))
    build_environment(site, "growing\nvictim", repository=ATTACKER)
    assert caches(site) == ["", VICTIM]


@pytest.mark.parametrize("source", ["option", "address", "path"])
def test_06_sources_named_by_a_checkout_stay_out_of_the_shared_cache(
    site: Site, index: Index, source: str
) -> None:
    """uv knows an index by a weak hash of its address, and a local wheel by its path and time."""
    name, content = wheel("own", "1.0")
    index.add((name, content))
    (site.workspace / name).write_bytes(content)
    line = {
        "option": f"--index-url {index.url}\nown", "address": f"own @ http://{index.address}/files/{name}",
        "path": f"./{name}",
    }[source]  # fmt: skip
    environment = build_environment(site, line, repository=ATTACKER)
    assert "own==1.0" in environment.packages
    assert caches(site) == [ATTACKER]


def test_06_no_inode_is_shared(site: Site, index: Index) -> None:
    index.add(wheel("more", "1.0"))
    first, second = build_environment(site, "victim"), build_environment(site, "victim\nmore")
    assert any("over a similar environment" in message for message in site.messages)
    inodes = []
    for folder, _, names in os.walk(site.store.environments):
        for name in names:
            information = Path(folder, name).lstat()
            assert information.st_nlink == 1, Path(folder, name)
            inodes.append(information.st_ino)
    assert len(inodes) == len(set(inodes))
    assert {first.hash, second.hash} == set(site.environments())


@pytest.mark.parametrize("kind", ["image", "isolated"])
def test_06_environment_code_does_not_run_while_the_cache_is_writable(
    site: Site, index: Index, kind: str
) -> None:
    mark = "import os; os.path.isdir('/train-classifier/uv-cache') and os.mkdir('/train-classifier/uv-cache/mark')\n"
    index.add(wheel("hooked", "1.0", files={"hooked.pth": mark, "sitecustomize.py": mark}))
    build_environment(site, "victim", kind=kind)
    environment = build_environment(site, "hooked\nvictim", kind=kind)
    # It is compiled, which saves seconds at each import.
    folder = site.store.envs / environment.hash / "site"
    assert list(folder.rglob("__pycache__/hooked.*.pyc"))
    assert list(site.store.uv_caches.rglob("mark")) == []


def test_06_python_of_an_image_reaches_only_the_cache_of_that_image(
    site: Site, index: Index, engine: docker.DockerClient, base_image: str
) -> None:
    """A checkout names its image, and the image's Python runs while its cache is writable."""
    build_environment(site, "victim", repository=VICTIM)
    folder = "/usr/lib/python3/dist-packages"
    program = f"echo import evil_hook >{folder}/evil.pth; cat >{folder}/evil_hook.py <<'E'\n{POISON}\nE"
    with image_after(engine, base_image, "evil", ["sh", "-c", program]) as evil:
        build_environment(site, "victim", evil, repository=ATTACKER)
    later = build_environment(site, hashed_requirement(index), repository=VICTIM)
    assert site.run(site.find(), later, VALUE) == "clean\n"
    assert len(list(site.store.uv_caches.iterdir())) == 2


def test_06_image_with_forged_layer_labels_is_not_used(
    site: Site, engine: docker.DockerClient, base_image: str
) -> None:
    """The maker of an image chooses its labels: another repository's layer would begin from it."""
    base = site.find()
    labels = {
        "train-classifier": "1", "train-classifier.kind": "image", "train-classifier.base": base.id,
        "train-classifier.packages": "bc",
    }  # fmt: skip
    with image_after(engine, base_image, "layer", ["true"], configuration={"Labels": labels}) as evil:
        nearest = package_layers._nearest(engine, base, ("bc", "tree"))[0]
        assert nearest != engine.images.get(evil).id


@pytest.mark.parametrize("prefix", ["", "docker.io/", "index.docker.io/"])
def test_06_layer_names_are_never_pulled(site: Site, prefix: str) -> None:
    with pytest.raises(NoEnvironment, match="such names are never pulled"):
        site.find(f"{prefix}train-classifier/packages:{'0' * 32}")


@pytest.mark.skipif(os.geteuid() != 0, reason="root submits for another account")
def test_06_build_account_owns_only_leaf_folders(site: Site, index: Index, tmp_path: Path) -> None:
    """Rule 2: root's records and folders lie where a build cannot write."""
    environment = build_environment(site, "victim\nevil", repository=ATTACKER)
    account = site.host.job_user()
    leaves = {site.store.envs / environment.hash / "site", *site.store.uv_caches.iterdir()}
    assert {path.stat().st_uid for path in leaves} == {account.uid}
    for folder, folders, names in os.walk(site.store.environments):
        folders[:] = [name for name in folders if Path(folder, name) not in leaves]
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            information = path.lstat()
            assert (information.st_uid, information.st_mode & 0o022) == (0, 0), path
