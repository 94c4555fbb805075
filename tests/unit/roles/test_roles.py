"""Every role and playbook has documented variables, a README of fixed shape, YAML that parses, plays that load."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts.play import ANSIBLE_PLAYBOOK, ROOT, ansible_environment
from role_files import task_files, tasks_of

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if (path / "tasks").is_dir())
# Carries a job out rather than provisioning; its variables are the CLI's.
PROVISIONING = [name for name in ROLES if name != "training_job"]
PLAYBOOKS = sorted([ROOT / "site.yml", *(ROOT / "playbooks").glob("*.yml")])


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def defaults(role: str) -> dict[str, Any]:
    return load(ROOT / "roles" / role / "defaults/main.yml") or {}


def options(role: str) -> dict[str, Any]:
    return load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]


@pytest.mark.parametrize("role", PROVISIONING)
def test_argument_specs_describe_exactly_the_defaults(role: str) -> None:
    assert set(options(role)) == set(defaults(role))


@pytest.mark.parametrize("role", ROLES)
def test_argument_specs_name_the_real_default(role: str) -> None:
    # A default that is a template has no fixed value to compare.
    documented = {name: option["default"] for name, option in options(role).items() if "default" in option}
    real = {
        name: value for name, value in defaults(role).items() if name in documented and "{{" not in str(value)
    }
    assert {name: documented[name] for name in real} == real


@pytest.mark.parametrize("role", PROVISIONING)
def test_every_option_has_description_and_type(role: str) -> None:
    assert not [
        name
        for name, option in options(role).items()
        if not option.get("description") or not option.get("type")
    ]


def test_page_of_the_roles_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/roles", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_variables_have_the_prefix_of_their_role(role: str) -> None:
    names = set(defaults(role))
    internal = ROOT / "roles" / role / "vars"
    for path in internal.glob("*.yml") if internal.is_dir() else ():
        names |= set(load(path) or {})
    assert not [name for name in names if not name.removeprefix("__").startswith(f"{role}_")]


@pytest.mark.parametrize("role", PROVISIONING)
def test_readme_has_the_fixed_shape(role: str) -> None:
    lines = (ROOT / "roles" / role / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# {role}"
    assert [line for line in lines if line.startswith("## ")] == [
        "## What it does",
        "## Variables",
        "## Example",
        "## Tags",
    ]


@pytest.mark.parametrize("role", PROVISIONING)
def test_main_begins_with_the_preflight(role: str) -> None:
    if role in ("host_check", "common"):
        pytest.skip("host_check is nothing but checks, and common is included in parts")
    first = load(ROOT / "roles" / role / "tasks/main.yml")[0]
    while "block" in first:
        first = first["block"][0]
    included = first.get("ansible.builtin.include_tasks") or first.get("ansible.builtin.import_tasks")
    assert (included["file"] if isinstance(included, dict) else included) == "preflight.yml"


@pytest.mark.parametrize(
    "role",
    [
        "docker_engine",
        "nvidia_container_toolkit",
        "nvidia_driver",
        "slurm_controller",
        "slurm_node",
        "training_host",
    ],
)
def test_uninstall_looks_for_jobs_before_it_touches_anything(role: str) -> None:
    look, refuse, *_ = load(ROOT / "roles" / role / "tasks/uninstall.yml")
    assert refuse["ansible.builtin.include_role"] == {"name": "host_check", "tasks_from": "no_jobs"}
    assert "when" not in refuse
    facts = {"name": "common", "tasks_from": "facts"}
    assert "ansible.builtin.include_tasks" in look or look.get("ansible.builtin.include_role") == facts


@pytest.mark.parametrize("role", PROVISIONING)
def test_facts_are_a_small_subset_that_is_used(role: str) -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "roles" / role).rglob("*.yml"))
    subsets = re.findall(r"(?:gather_subset|fact_subset): (\[.*\])", text)
    assert bool(subsets) == ("ansible.builtin.setup:" in text)
    for subset in subsets:
        assert set(yaml.safe_load(subset)) - {"!all", "!min"} <= {"distribution", "platform", "service_mgr"}
        assert {"!all", "!min"} <= set(yaml.safe_load(subset))


@pytest.mark.parametrize("name", ["provision", "update"])
def test_a_play_of_several_roles_gathers_facts_once_for_all(name: str) -> None:
    first, *others = load(ROOT / f"playbooks/{name}.yml")
    assert first["gather_facts"] and set(first["gather_subset"]) >= {"!all", "!min", "distribution"}
    assert not [play for play in others if play.get("gather_facts")]


def test_plugins_have_unique_names() -> None:
    names = [path.stem for path in (ROOT / "plugins").rglob("*.py")]
    assert names and len(names) == len(set(names))
    assert not [
        path
        for kind in ("*_plugins", "library", "module_utils")
        for path in (ROOT / "roles").glob(f"*/{kind}")
    ]


def test_pipelining_is_on() -> None:
    command = [ANSIBLE_PLAYBOOK.with_name("ansible-config"), "dump", "-t", "connection", "ssh"]
    done = subprocess.run(command, env=ansible_environment(), capture_output=True, text=True, check=True)
    assert re.search(r"^pipelining\(.*ansible\.cfg\) = True$", done.stdout, re.M)


def yaml_files() -> list[Path]:
    folders = [ROOT / name for name in ("roles", "playbooks", "molecule", "inventory", ".config")]
    return sorted(path for folder in folders if folder.is_dir() for path in folder.rglob("*.yml"))


@pytest.mark.parametrize("path", yaml_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_parses_and_hides_no_failure(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if not text.startswith("$ANSIBLE_VAULT"):
        list(yaml.safe_load_all(text))
    for forbidden in ("ignore_errors:", "failed_when: false", "|| true"):
        assert forbidden not in text


def test_retries_of_apt_are_those_of_the_role() -> None:
    """The apt module's own five tries would multiply a role's retries: an outage would be reported after minutes only."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "roles").glob("*/tasks/*.yml")]
    count = sum(text.count("update_cache: true\n") for text in texts)
    once = sum(len(re.findall(r"update_cache: true\n +update_cache_retries: 1\n", text)) for text in texts)
    assert count == once > 0


#: Variables that may hold a password: environments (proxies, indexes), the engine's configuration, addresses of mirrors,
#: credentials of GitHub.
SECRET = re.compile(
    r"\b(?:common_environment|(?:docker_engine|nvidia_driver|nvidia_container_toolkit|training_host|github_runner"
    r"|train_classifier|host_check)_environment|__(?:training_host_build|github_runner)_environment"
    r"|__docker_engine_(?:proxy|merge|config_text|record|remaining|record_read|config_read)|docker_engine_daemon_options"
    r"|__training_host_settings|training_host_apt_mirror"
    r"|nvidia_driver_(?:debian_mirror|cuda_repository_url)|__nvidia_driver_(?:mirror|sources|keyring_url)"
    r"|nvidia_container_toolkit_(?:repository_url|key_url)|__nvidia_container_toolkit_(?:before|after|merged|daemon)"
    r"|github_runner_(?:pat|app_key|token|remove_token|download_url)|__github_runner_(?:new_token|answer)"
    # Results that hold one.
    r"|__nvidia_container_toolkit_files|__training_host_uv_fetched|github_runner_releases_url)\b"
)
#: Files that may hold one.
FILES = re.compile(
    r"docker_engine_config_file|__docker_engine_record_file|nvidia_container_toolkit_daemon_json"
)
#: What only tells where something lies, or how many there are, is no secret.
HARMLESS = re.compile(
    r"\w+ \| (?:length|dirname)|\w+\.rc\b|\w+ is match\('https:'\)|\w+ \| incuvers\.train_classifier\.common_without_login"
    r"|__docker_engine_merge\.edited|__docker_engine_record\.(?:foreign|holds|packages|created_\w+|remove_data)"
    r"|\w+ \| incuvers\.train_classifier\.nvidia_container_toolkit_lost\(\w+\)"
    r"|\w+(?:_url)? \| urlsplit\('hostname'\)"
)
#: The modules that show what they write when Ansible runs with --diff, and those that show what they were told or what they read.
WRITE = ("copy", "template", "lineinfile", "blockinfile", "common_files")
SHOW = ("set_fact", "command", "shell", "slurp", "debug", "get_url", "uri", "script", "assert", "fail")


@pytest.mark.parametrize("path", task_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_task_shows_a_secret(path: Path) -> None:
    for task in (each.keys for each in tasks_of(path)):
        name = task.get("name")
        # On the command line of the module, which ps and -vvv show: roles/common/tasks/environment.yml.
        shown_environment = HARMLESS.sub("", json.dumps(task.get("environment", "")))
        assert not SECRET.search(shown_environment), f"{name}: environment {shown_environment}"
        for module in (*WRITE, *SHOW):
            arguments = task.get(f"ansible.builtin.{module}", task.get(f"incuvers.train_classifier.{module}"))
            if arguments is None:
                continue
            shown = HARMLESS.sub("", json.dumps([arguments, task.get("loop")]))
            if module == "template" and "{{" not in arguments["src"]:
                shown += (path.parents[1] / "templates" / arguments["src"]).read_text()
            if module in ("assert", "fail"):
                # Of a message only the inserted values, without names of variables.
                sentence = HARMLESS.sub("", str(arguments.get("fail_msg") or arguments.get("msg")))
                shown = re.sub(r"'[^']*'", "", " ".join(re.findall(r"\{\{.*?\}\}", sentence, re.S)))
            if module in WRITE and not {"content", "src", "line", "block", "files"} & set(arguments):
                continue
            reads = module in (*WRITE, "slurp", "command") and FILES.search(shown)
            hidden = "no_log" in task or (module in WRITE and task.get("diff") is False)
            assert hidden or not (SECRET.search(shown) or reads), f"{name}: {module} shows a secret"
        # What a task read is in its result, which -v prints.
        registers = SECRET.search(str(task.get("register")))
        # So is the environment of a unit that systemd starts.
        starts_engine = task.get("ansible.builtin.systemd_service", {}).get("name") == "docker.service"
        assert task.get("no_log") or not (registers or starts_engine), f"{name}: its result shows a secret"
        assert task.get("no_log") is not False, f"{name}: no_log is off"


#: As docs/hosts.md says; of the example only.
VAULT_PASSWORD = "change-me"


@pytest.fixture
def vault(tmp_path: Path) -> dict[str, str]:
    """The environment that opens the example's secrets."""
    file = tmp_path / "password"
    file.write_text(VAULT_PASSWORD)
    return {"ANSIBLE_VAULT_PASSWORD_FILE": str(file)}


def test_example_shows_vaulted_secrets(vault: dict[str, str]) -> None:
    file = ROOT / "inventory/example/group_vars/training/vault.yml"
    assert file.read_text().startswith("$ANSIBLE_VAULT;")
    assert f"`{VAULT_PASSWORD}`" in (ROOT / "docs/hosts.md").read_text()
    command = [ANSIBLE_PLAYBOOK.with_name("ansible-inventory"), "-i", "inventory/example", "--host", "gpu-2"]
    environment = ansible_environment(**vault)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    variables = json.loads(done.stdout)
    assert variables["vault_github_runner_pat"] == "replace-me"
    # A Maxwell card: TensorFlow 2.17 has no kernels for it.
    assert ":2.16." in variables["training_host_pull_images"]["gpu"]


def test_playbooks_pass_the_syntax_check(vault: dict[str, str]) -> None:
    command = [ANSIBLE_PLAYBOOK, "--syntax-check", "-i", "inventory/example", *PLAYBOOKS]
    environment = ansible_environment(**vault)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
