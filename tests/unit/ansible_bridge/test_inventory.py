"""The inventory's hosts as Ansible reaches them, and the faults of row 7: unknown, none, several."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from train_classifier.ansible_bridge import inventory
from train_classifier.core.errors import BadInput, ExitCode, NotReady

LAB = """
lab:
  hosts:
    gpu1:
      ansible_host: 10.0.0.1
      ansible_port: 2222
      ansible_user: "{{ who }}"
      ansible_ssh_common_args: "-o ProxyJump={{ hostvars['bastion'].ansible_host }}"
      training_job_state_dir: /srv/{{ inventory_hostname }}
    gpu2: { ansible_host: "{{ base }}.2" }
    here: { ansible_connection: local, ansible_python_interpreter: auto_silent }
jump:
  hosts:
    bastion: { ansible_host: jump.example }
odd:
  hosts:
    windows: { ansible_connection: winrm }
    password: { ansible_password: hunter2 }
    undefined: { ansible_host: "{{ nowhere }}" }
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with an inventory of three usable hosts and some that are not."""
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars" / "lab.yml").write_text(
        "who: alice\nbase: 10.0.1\nansible_ssh_private_key_file: /keys/id one\n"
        "ansible_python_interpreter: /usr/bin/python3.11\n"
    )
    path = tmp_path / "lab.yml"
    path.write_text(LAB)
    return path


def refused(source: str | None, host: str | None, cwd: Path) -> str:
    """Return the one sentence with which a host is refused."""
    with pytest.raises(BadInput) as caught:
        inventory.single_host(source, host, {}, cwd)
    assert caught.value.code == ExitCode.BAD_INPUT
    (problem,) = caught.value.problems
    assert "\n" not in problem
    assert "hunter2" not in problem
    return problem


def test_without_an_inventory_the_host_is_this_machine(tmp_path: Path) -> None:
    assert inventory.single_host(None, None, {}, tmp_path) == inventory.Target("localhost")
    assert inventory.single_host(None, "localhost", {}, tmp_path).local
    assert "no inventory is given" in refused(None, "gpu1", tmp_path)


@pytest.fixture
def ssh_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `ssh` on PATH whose configuration knows the host gpu-1."""
    (tmp_path / "config").write_text("Host gpu-1\n  HostName 192.0.2.7\n")
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPATH=${{PATH#*:}} exec ssh -F {tmp_path}/config "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh client on this machine")
def test_a_name_that_ssh_knows_is_an_inventory(ssh_config: Path) -> None:
    cwd = ssh_config
    assert inventory.resolve("gpu-1", {}, cwd) == "gpu-1,"
    assert inventory.resolve(None, {inventory.VARIABLE: "gpu-1"}, cwd) == "gpu-1,"
    assert inventory.resolve(None, {}, cwd, "gpu-1") == "gpu-1,"
    target = inventory.single_host("gpu-1", "gpu-1", {}, cwd)
    assert not target.local and target.ssh[-1] == "gpu-1"
    # Neither this machine, nor a pattern, nor an option, nor a name that nobody knows.
    for name in ("localhost", "all", "gpu-*", "-oProxyCommand=id", "a:b", "no-such-host.invalid"):
        assert inventory.resolve(None, {}, cwd, name) is None
    with pytest.raises(BadInput, match="neither does ssh know"):
        inventory.resolve("no-such-host.invalid", {}, cwd)
    # A file of that name is the inventory.
    (cwd / "gpu-1").write_text("[all]\nb ansible_connection=local\n")
    assert inventory.resolve("gpu-1", {}, cwd) == str(cwd / "gpu-1")


def test_only_what_ansible_needs_of_the_environment_reaches_it(tmp_path: Path) -> None:
    (tmp_path / "hosts.py").write_text(
        "#!/bin/sh\nenv >" + str(tmp_path / "environment") + '\necho \'{"all": {"hosts": ["a"]}}\'\n'
    )
    (tmp_path / "hosts.py").chmod(0o755)
    environ = {
        "PATH": "/usr/bin:/bin",
        "HF_TOKEN": "hunter2",
        "LC_ALL": "xx_YY.UTF-8",
        "LANG": "C",
        "TERM": "vt100",
    }
    assert inventory.single_host("hosts.py", None, environ, tmp_path).name == "a"
    names = dict(
        line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines() if "=" in line
    )
    assert "HF_TOKEN" not in names and "LANG" not in names
    assert (names["TERM"], names["LC_ALL"]) == ("vt100", "C.UTF-8")


@pytest.mark.parametrize("locale", ["C", "POSIX", "xx_YY.UTF-8", "de_DE.UTF-8"])
def test_every_locale_of_the_caller_works(lab: Path, locale: str) -> None:
    environ = {"LC_ALL": locale, "LANG": locale, "LC_NUMERIC": "de_DE.UTF-8"}
    assert inventory.single_host("lab.yml", "gpu1", environ, lab.parent).name == "gpu1"


def test_bad_variable_of_ansible_is_not_reported_as_a_bug(lab: Path) -> None:
    with pytest.raises(NotReady, match="does not start") as caught:
        inventory.single_host("lab.yml", "gpu1", {"ANSIBLE_FORKS": "many"}, lab.parent)
    assert "ANSIBLE_" in str(caught.value.hint)


def test_ssh_command_line_is_that_of_ansible(lab: Path) -> None:
    target = inventory.single_host("lab.yml", "gpu1", {}, lab.parent)
    assert not target.local
    assert target.ssh[0] == "ssh"
    assert target.ssh[-1] == "10.0.0.1"
    for word in (
        "Port=2222",
        'User="alice"',
        'IdentityFile="/keys/id one"',
        "ProxyJump=jump.example",
        "ControlMaster=auto",
        "PasswordAuthentication=no",
    ):
        assert word in target.ssh
    assert any(word.startswith("ControlPath=") for word in target.ssh)
    assert target.python == "/usr/bin/python3.11"
    assert target.state_dir == "/srv/gpu1"
    # ssh itself accepts it: -G prints the configuration that would be used, without connecting.
    done = subprocess.run([target.ssh[0], "-G", *target.ssh[1:]], capture_output=True, text=True, check=True)
    assert "hostname 10.0.0.1\n" in done.stdout
    assert "port 2222\n" in done.stdout
    assert "user alice\n" in done.stdout
    assert "identityfile /keys/id one\n" in done.stdout
    assert "proxyjump jump.example\n" in done.stdout


def test_patterns_and_groups(lab: Path) -> None:
    targets = inventory.hosts("lab.yml", "lab:!gpu2", {}, lab.parent)
    assert [target.name for target in targets] == ["gpu1", "here"]
    assert targets[1].local
    assert targets[1].python is None
    assert inventory.single_host("lab.yml", "jump", {}, lab.parent).ssh[-1] == "jump.example"


def test_inventory_from_the_environment(lab: Path) -> None:
    environ = {inventory.VARIABLE: str(lab)}
    assert inventory.single_host(None, "gpu2", environ, Path("/")).ssh[-1] == "10.0.1.2"


def test_a_list_of_hosts_is_an_inventory(tmp_path: Path) -> None:
    assert inventory.single_host("someone@gpu7,", None, {}, tmp_path).ssh[-1] == "someone@gpu7"


def test_unknown_hosts_are_refused(lab: Path) -> None:
    assert "did you mean 'gpu1'?" in refused("lab.yml", "gpu11", lab.parent)
    assert "it has gpu1, gpu2, here" in refused("lab.yml", "zzz", lab.parent)
    assert "matches 'z*'" in refused("lab.yml", "z*", lab.parent)
    assert "not the name of a host" in refused("lab.yml", "@/etc/passwd", lab.parent)
    assert "not the name of a host" in refused("lab.yml", "", lab.parent)


def test_two_hosts_are_refused_if_one_is_needed(lab: Path) -> None:
    assert refused("lab.yml", "gpu*", lab.parent) == (
        "'gpu*' matches 2 hosts, but one is needed: gpu1, gpu2; name one by --host"
    )
    assert "has 7 hosts, but one is needed: gpu1" in refused("lab.yml", None, lab.parent)


def test_hosts_that_cannot_be_used(lab: Path) -> None:
    assert "uses connection 'winrm'" in refused("lab.yml", "windows", lab.parent)
    assert "is reached with a password" in refused("lab.yml", "password", lab.parent)
    assert "'nowhere' is undefined" in refused("lab.yml", "undefined", lab.parent)


def test_inventories_that_cannot_be_read(tmp_path: Path) -> None:
    assert "does not exist" in refused("nope.yml", None, tmp_path)
    assert "neither does ssh know" in refused("gpu1", None, tmp_path)
    assert "is empty" in refused("", None, tmp_path)
    (tmp_path / "broken.yml").write_text("a:\n  hosts: [\n")
    assert "YAML parsing failed" in refused("broken.yml", None, tmp_path)
    (tmp_path / "empty.yml").write_text("lab:\n")
    assert "has no hosts" in refused("empty.yml", None, tmp_path)


def test_templates_of_the_caller_stay_literal(lab: Path) -> None:
    witness = lab.parent / "witness"
    template = f"{{{{ lookup('pipe', 'touch {witness}') }}}}"
    refused("lab.yml", template, lab.parent)
    refused(template, None, lab.parent)
    refused(f"{template},", None, lab.parent)
    assert not witness.exists()


def test_vaulted_variables_are_read_by_ansible(lab: Path) -> None:
    password = lab.parent / "password"
    password.write_text("open sesame\n")
    vault = Path(sys.executable).with_name("ansible-vault")
    done = subprocess.run(
        [vault, "encrypt_string", "--vault-password-file", password, "vera", "--name", "ansible_user"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (lab.parent / "group_vars" / "jump.yml").write_text(done.stdout)
    assert "vault" in refused("lab.yml", "bastion", lab.parent)
    environ = {"ANSIBLE_VAULT_PASSWORD_FILE": str(password)}
    assert 'User="vera"' in inventory.single_host("lab.yml", "bastion", environ, lab.parent).ssh


def test_vaulted_file_needs_a_password_but_names_do_not(lab: Path) -> None:
    (lab.parent / "password").write_text("open sesame\n")
    secret = lab.parent / "group_vars" / "jump.yml"
    secret.write_text("ansible_user: vera\n")
    vault = Path(sys.executable).with_name("ansible-vault")
    subprocess.run(
        [vault, "encrypt", "--vault-password-file", lab.parent / "password", secret],
        capture_output=True, check=True,
    )  # fmt: skip
    assert "ANSIBLE_VAULT_PASSWORD_FILE" in refused("lab.yml", "bastion", lab.parent)
    assert inventory.host_names(str(lab), "jump:&bastion") == ["bastion"]
    assert inventory.host_names(str(lab), "jump:&gpu1") == inventory.host_names(str(lab), "nowhere") == []


def test_an_inventory_may_be_a_program(tmp_path: Path) -> None:
    program = tmp_path / "cloud"
    program.write_text(
        '#!/bin/sh\necho noise >&2\necho \'{"all": {"hosts": ["gpu9"]}, "_meta": {"hostvars": {}}}\'\n'
    )
    program.chmod(0o755)
    assert inventory.single_host("cloud", None, {"PATH": "/usr/bin:/bin"}, tmp_path).name == "gpu9"
