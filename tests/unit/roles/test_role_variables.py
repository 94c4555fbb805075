"""What the roles' variables come to, templated as Ansible does it: settings that are refused, packages, names of folders, paths."""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from role_files import ROOT, load

# The filters of the roles go by the collection's name.
init_plugin_loader([str(ROOT / "collections")])

FACTS = {
    "distribution": "Debian",
    "distribution_major_version": "13",
    "architecture": "x86_64",
    "service_mgr": "systemd",
}


def trusted(value: Any) -> Any:
    """The same with texts that may be templates, as Ansible reads them from a file."""
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: trusted(inner) for key, inner in value.items()}
    return [trusted(inner) for inner in value] if isinstance(value, list) else value


@functools.cache
def own_variables(role: str) -> dict[str, Any]:
    """The role's defaults and variables."""
    paths = (ROOT / "roles" / role / part / "main.yml" for part in ("defaults", "vars"))
    return {
        name: trusted(value) for path in paths if path.exists() for name, value in (load(path) or {}).items()
    }


def value(role: str, name: str, **variables: Any) -> Any:
    """What a variable of the role is, where these other variables are set."""
    host = {"ansible_facts": FACTS, "inventory_hostname": "gpu-1", "ansible_check_mode": False}
    everything = {**host, **own_variables(role), **variables}
    return Templar(loader=DataLoader(), variables=everything).template(everything[name])


APP = {"github_runner_app_id": "1", "github_runner_app_key": "key"}
WORKS = {"github_runner_repository": "acme/widgets", "github_runner_pat": "pat"}


def problems(**settings: Any) -> list[str]:
    settings = {"github_runner_name": "gpu-1", **settings}
    conditions = value("github_runner", "__github_runner_problems", **settings)
    return [problem["say"] for problem in conditions if problem["when"]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"github_runner_labels": ["a", "b c"], "github_runner_count": 64},
        {"github_runner_pat": "", **APP, "github_runner_mode": "jit"},
        {"github_runner_pat": "", **APP, "github_runner_mode": "ephemeral"},
        {"github_runner_repository": "", "github_runner_enterprise": "acme"},
        {"github_runner_pat": "", "github_runner_token": "t", "github_runner_version": "2.330.0"},
        {"github_runner_checksum": "0" * 64, "github_runner_version": "2.330.0"},
        {"github_runner_ca_bundle": "/etc/ca.pem", "github_runner_folder": "/srv/runner"},
    ],
)
def test_settings_of_a_runner_that_work_are_not_refused(settings: dict[str, Any]) -> None:
    assert problems(**{**WORKS, **settings}) == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"github_runner_repository": ""}, "Set exactly one of github_runner_repository"),
        ({"github_runner_organization": "acme"}, "Set exactly one of github_runner_repository"),
        ({"github_runner_pat": ""}, "Give exactly one credential"),
        ({**APP}, "Give exactly one credential"),
        ({"github_runner_pat": "", "github_runner_app_id": "1"}, "needs both"),
        ({"github_runner_pat": "", "github_runner_app_key": "key"}, "needs both"),
        ({"github_runner_repository": "", "github_runner_enterprise": "acme", "github_runner_pat": "", **APP}, "of an enterprise"),
        ({"github_runner_mode": "jit"}, "takes a GitHub App"),
        ({"github_runner_mode": "ephemeral"}, "takes a GitHub App"),
        ({"github_runner_pat": "", "github_runner_token": "t"}, "cannot ask GitHub which version"),
        ({"github_runner_name": "a/b"}, "github_runner_name must be"),
        ({"github_runner_name": "a" * 61}, "github_runner_name must be"),
        ({"github_runner_folder": "opt/runner"}, "must be an absolute path without a slash"),
        ({"github_runner_folder": "/opt/runner/"}, "must be an absolute path without a slash"),
        ({"github_runner_folder": "/"}, "must be an absolute path without a slash"),
        ({"github_runner_labels": ["a,b"]}, "A label must not"),
        ({"github_runner_labels": [""]}, "A label must not"),
        ({"github_runner_count": 0}, "must be 1 to 64"),
        ({"github_runner_count": 65}, "must be 1 to 64"),
        ({"github_runner_checksum": "abc", "github_runner_version": "2"}, "64 hexadecimal digits"),
        ({"github_runner_ca_bundle": "ca.pem"}, "must be an absolute path on the host"),
        ({"github_runner_checksum": "0" * 64}, "belongs to one version"),
    ],
)  # fmt: skip
def test_settings_of_a_runner_that_cannot_work_are_refused(settings: dict[str, Any], sentence: str) -> None:
    sentences = problems(**{**WORKS, **settings})
    assert [one for one in sentences if sentence in one], sentences
    # Several stand behind each other in one message.
    assert all(one.endswith(".") for one in sentences), sentences


def test_packages_of_the_runner_differ_in_versions_alone() -> None:
    """Those of the runner's own installdependencies.sh, and what the role itself calls."""
    expected = [
        "ca-certificates",
        "git",
        "libicu",
        "libkrb5-",
        "liblttng-ust",
        "libssl",
        "openssl",
        "tar",
        "zlib1g",
    ]
    releases = list((ROOT / "roles/github_runner/vars").glob("*_*.yml"))
    assert len(releases) == 5
    for path in releases:
        names = load(path)["__github_runner_packages"]
        assert sorted(re.sub(r"\d+(t64)?$", "", name) for name in names) == expected, path.stem


def test_ubuntu_has_debians_names_where_no_release_has_others() -> None:
    """Containers of Debian run what its file says; no test runs a role with Ubuntu's."""
    same = [
        path.parent.parent.name
        for path in sorted((ROOT / "roles").glob("*/vars/ubuntu.yml"))
        if load(path) == load(path.with_name("debian.yml"))
    ]
    assert same == ["docker_engine", "monitoring", "slurm_controller", "slurm_node", "training_host"]


def test_teardown_knows_every_folder_of_the_worker() -> None:
    """A name that is missing stays on the host for ever."""
    store = (ROOT / "train_classifier/worker/state/store.py").read_text()
    folders = set(re.findall(r'root / "(\w+)"', store))
    assert len(folders) >= 4
    assert folders <= set(value("training_host", "__training_host_state_names"))
    # What the role's tasks and the worker make in the host's folder.
    text = "".join(path.read_text() for path in (ROOT / "roles/training_host").rglob("*.yml"))
    made = set(re.findall(r"__training_host_root(?: \}\}|\s*~\s*')/([\w.-]+)", text)) - {"installed", "state"}
    assert len(made) > 6
    assert made | {"drain"} <= set(value("training_host", "__training_host_names"))


def test_ids_of_an_architecture_are_whole_blocks() -> None:
    """As the PCI id database has them: a range that begins or ends elsewhere is a misspelt one."""
    architectures = value("nvidia_driver", "__nvidia_driver_architectures")
    for one in architectures:
        assert one["first"] % 16 == 0 and one["last"] % 16 == 15 and one["first"] < one["last"], one
    modules = {one["name"]: (one["module"], one["last_branch"]) for one in architectures}
    old, later = ("proprietary", 580), ("either", None)
    assert modules == {
        **dict.fromkeys(("Maxwell", "Pascal", "Volta"), old),
        **dict.fromkeys(("Turing", "Ampere", "Ada", "Hopper"), later),
        "Blackwell": ("open", None),
    }
    assert all(modules[one["name"]] == (one["module"], one["last_branch"]) for one in architectures)
    # The first branch that knows the chips of an architecture: NVIDIA's release notes.
    first = sorted((one["name"], one["first"], one["first_branch"]) for one in architectures)
    assert [branch for _, _, branch in first] == [
        525,
        450,
        455,
        460,
        570,
        525,
        340,
        340,
        361,
        361,
        410,
        410,
        384,
    ]


def test_releases_have_their_own_suites() -> None:
    folder = ROOT / "roles/nvidia_driver/vars"
    suites = {path.stem: load(path)["__nvidia_driver_suite"] for path in folder.glob("debian_*.yml")}
    assert suites == {"debian_12": "bookworm", "debian_13": "trixie"}
    # Debian packages no fabric manager.
    for distribution, has_one in (("debian", False), ("ubuntu", True)):
        assert load(folder / f"{distribution}.yml")["__nvidia_driver_has_fabric_manager"] is has_one


def test_engine_keeps_containers_and_bounds_their_logs() -> None:
    """Without live-restore a restart of the engine ends jobs; without a bound a log fills the disk."""
    options = value("docker_engine", "__docker_engine_options")
    assert options == {
        "live-restore": True,
        "log-driver": "json-file",
        "log-opts": {"max-size": "10m", "max-file": "3"},
    }
    more = {
        "docker_engine_daemon_options": {"log-opts": {"tag": "x"}},
        "docker_engine_address_pools": [{"base": "10.0.0.0/8", "size": 24}],
    }
    options = value("docker_engine", "__docker_engine_options", **more)
    assert options["log-opts"] == {"max-size": "10m", "max-file": "3", "tag": "x"}
    assert options["default-address-pools"] == more["docker_engine_address_pools"]


@pytest.mark.parametrize(
    ("record", "host", "kept"),
    [
        ({"remove_data": True}, {"installed": "docker.io"}, False),
        ({"remove_data": True}, {}, False),
        ({"remove_data": False}, {"installed": "docker.io"}, True),
        ({}, {}, True),
        # An administrator put another engine in its place.
        ({"remove_data": True}, {"installed": "docker-ce"}, True),
    ],
)
def test_data_of_an_engine_in_use_outlives_the_purge(
    record: dict[str, Any], host: dict[str, str], kept: bool
) -> None:
    variables = {"__docker_engine_record": record, "__docker_engine_host": host}
    assert bool(value("docker_engine", "__docker_engine_removed_before_purge", **variables)) == kept


def test_engine_gets_proxies_alone_of_the_environment() -> None:
    environment = {"https_proxy": "http://p", "NO_PROXY": "localhost", "PIP_INDEX_URL": "http://i"}
    proxy = value(
        "docker_engine",
        "__docker_engine_proxy",
        docker_engine_environment=environment,
        docker_engine_ca_bundle="/ca",
    )
    assert proxy == {"https_proxy": "http://p", "NO_PROXY": "localhost", "SSL_CERT_FILE": "/ca"}


#: Paths by which another release of the roles finds what one left: they do not change.
PATHS = Path(__file__).parents[1] / "data/role_paths.txt"


def test_paths_on_hosts_do_not_change() -> None:
    """Teardown and update find by these what an earlier release left on a host. A new path is added to the list."""
    text = "\n".join(path.read_text() for path in (ROOT / "roles").glob("*/[dvt]*/*.yml"))
    here = set(
        re.findall(r"(?<![\w}/.*-])/(?:etc|usr/local|var/lib|var/cache|var/run|run|opt)/[\w./@-]+", text)
    )
    listed = set(PATHS.read_text().split())
    assert sorted(listed - here) == []


def test_older_controller_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the collection says that it needs a newer one, Ansible itself only warns."""
    required = load(ROOT / "meta/runtime.yml")["requires_ansible"]
    for full, refused in [("2.18.19", True), (required.removeprefix(">="), False), ("2.20.1", False)]:
        problem = value("common", "__common_old_controller", ansible_version={"full": full})
        assert bool(problem) == refused
        assert not refused or problem.startswith(
            "This controller has ansible-core 2.18.19, and the roles need"
        )
    monkeypatch.setattr(sys, "version_info", (3, 11, 0, "candidate", 1))
    problem = value("common", "__common_old_controller", ansible_version={"full": "2.19.0"})
    monkeypatch.undo()
    assert problem.startswith("This controller has Python 3.") and "need 3.11 or newer" in problem
    first = load(ROOT / "roles/common/tasks/facts.yml")[0]
    assert first["ansible.builtin.import_tasks"] == "require_ansible.yml"
    assert load(ROOT / "roles/common/tasks/require_ansible.yml")[0]["when"] == "__common_old_controller != ''"


@pytest.mark.parametrize(
    ("foreign", "host", "expected"),
    [
        (False, {"installed": "docker.io", "role_packages": ""}, True),
        (True, {"installed": "docker.io", "role_packages": ""}, False),
        # Another engine has taken its place.
        (False, {"installed": "other"}, False),
        # A run was killed after it removed the packages: /etc/cni, the engine's data and the group docker are still there.
        (False, {}, True),
    ],
)
def test_leftovers_of_the_engine_are_the_roles_also_after_a_kill(
    foreign: bool, host: dict[str, str], expected: bool
) -> None:
    facts = {"__docker_engine_foreign": foreign, "__docker_engine_record": {}, "__docker_engine_host": host}
    assert value("docker_engine", "__docker_engine_is_roles", **facts) is expected


def toolkit_removal(record: str, configuration: str) -> tuple[list[str], dict[str, Any], Templar]:
    """What is wrong with both files, the variables of the restoring block, and a templar that knows the files."""
    tasks = load(ROOT / "roles/nvidia_container_toolkit/tasks/uninstall.yml")
    [refusal] = [task for task in tasks if task["name"].endswith("Refuse a file that cannot be read")]
    [block] = [task for task in tasks if task["name"].endswith("Restore the engine's configuration")]
    paths = ["{{ __nvidia_container_toolkit_records }}/before.json", "/etc/docker/daemon.json"]
    block_variables = {name: trusted(text) for name, text in block["vars"].items()}
    own = {**own_variables("nvidia_container_toolkit"), **block_variables}
    paths = [f"{own['__nvidia_container_toolkit_records']}/before.json", "/etc/docker/daemon.json"]
    files = [
        {"item": path, "stdout": text, "rc": 0}
        for path, text in zip(paths, [record, configuration], strict=True)
    ]
    templar = Templar(
        loader=DataLoader(), variables={**own, "__nvidia_container_toolkit_files": {"results": files}}
    )
    problems = [templar.template(trusted(item["problem"])) for item in refusal["loop"]]
    return problems, own, templar


def test_corrupt_record_of_the_toolkit_is_named() -> None:
    problems, _, _ = toolkit_removal('{"existed": ', "{}")
    assert problems[0].startswith("Expecting value") and problems[1] == ""


@pytest.mark.parametrize(
    ("record", "now", "removed"),
    [
        ({"existed": False, "daemon": {}}, {"runtimes": {"nvidia": {}}}, True),
        # The role docker_engine wrote it, and was removed before.
        ({"existed": True, "daemon": {"live-restore": True}}, {"runtimes": {"nvidia": {}}}, True),
        ({"existed": True, "daemon": {"live-restore": True}}, {"live-restore": True, "runtimes": {"nvidia": {}}}, False),
        # An administrator's, of nothing.
        ({"existed": True, "daemon": {}}, {"runtimes": {"nvidia": {}}}, False),
        ({}, {"runtimes": {"nvidia": {}}}, False),
    ],
)  # fmt: skip
def test_configuration_with_nothing_left_in_it_goes_with_the_toolkit(
    record: dict[str, Any], now: dict[str, Any], removed: bool
) -> None:
    problems, own, templar = toolkit_removal(json.dumps(record), json.dumps(now))
    assert problems == ["", ""]
    assert templar.template(own["__nvidia_container_toolkit_removes_file"]) is removed


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        (
            {"training_host_engine": "slurm", "train_classifier_slurm_people": "students"},
            {"engine": "slurm", "slurm_shared_dir": "/srv/train-classifier", "slurm_people": "students"},
        ),
        (
            {
                "training_host_slurm_node": True,
                "train_classifier_shared_dir": "/shared",
                "training_host_slurm_host_network": True,
            },
            {"slurm_node": True, "slurm_shared_dir": "/shared", "slurm_host_network": True},
        ),
    ],
)
def test_host_json_says_how_a_host_takes_its_jobs(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    host = {"role_path": str(ROOT / "roles/training_host"), "__training_host_host": {"nvidia_devices": "0"}}
    written = value("training_host", "__training_host_settings", **host, **settings)
    names = ("engine", "slurm_node", "slurm_shared_dir", "slurm_host_network", "slurm_people")
    assert {name: written[name] for name in names if written[name] is not None} == expected
    trains = value("training_host", "__training_host_trains", **settings)
    assert trains is ("engine" not in expected)
