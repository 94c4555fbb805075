"""Reads the hosts of an inventory and the ssh command line of each from Ansible itself.

A separate program, run by inventory.py: Ansible reads its configuration when it is imported, and may write
warnings to any stream. It reads one JSON object from standard input and writes one to standard output.
"""

import json
import os
import sys
from typing import Any

from train_classifier.ansible_bridge import content

#: Inventory variable that moves a host's state folder.
STATE_DIR = "training_job_state_dir"
_PASSWORDS = ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password")


def read(inventory: str, limit: str | None, names_only: bool = False) -> dict[str, Any]:
    """Return `hosts`, or `error` with Ansible's message; `names` are all its hosts and groups.

    With `names_only`, each host has only its `name`: no variable is read.
    """
    from ansible import constants as C
    from ansible.cli import CLI
    from ansible.errors import AnsibleError
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader
    from ansible.vars.hostvars import HostVars
    from ansible.vars.manager import VariableManager

    try:
        init_plugin_loader()
        loader = DataLoader()
        # As in our playbooks. Otherwise Ansible reads group_vars and host_vars of the current folder, which
        # may be an untrusted checkout, and variables can name programs to run.
        loader.set_basedir(str(content.root() / "playbooks"))
        secrets = CLI.setup_vault_secrets(
            loader, vault_ids=list(C.DEFAULT_VAULT_IDENTITY_LIST), ask_vault_pass=False, auto_prompt=False
        )
        loader.set_vault_secrets(secrets)
        manager = InventoryManager(loader=loader, sources=[inventory])
        variables = VariableManager(
            loader=loader, inventory=manager, version_info=CLI.version_info(gitinfo=False)
        )
        variables._hostvars = HostVars(inventory=manager, variable_manager=variables, loader=loader)
        all_hosts = [host.name for host in manager.list_hosts("all")]
        groups = [name for name in manager.groups if name not in ("all", "ungrouped")]
        if limit:
            manager.subset(limit)
        chosen = manager.list_hosts("all") if all_hosts else []
        if names_only:
            hosts = [{"name": str(host.name)} for host in chosen]
        else:
            hosts = [_describe_host(host, variables.get_vars(host=host), loader) for host in chosen]
    except AnsibleError as error:
        return {"error": str(error)}
    return {"names": [*all_hosts, *groups], "hosts": hosts}


def _describe_host(host: Any, variables: dict[str, Any], loader: Any) -> dict[str, Any]:
    from ansible import constants as C
    from ansible.errors import AnsibleError
    from ansible.playbook.play_context import PlayContext
    from ansible.plugins.loader import connection_loader
    from ansible.template import Templar

    description: dict[str, Any] = {"name": str(host.name), "problem": None, "local": False, "ssh": []}
    templar = Templar(loader=loader, variables=variables)
    try:
        kind = str(templar.template(variables.get("ansible_connection", C.DEFAULT_TRANSPORT)))
        kind = kind.removeprefix("ansible.builtin.")
        python = templar.template(variables.get("ansible_python_interpreter", "auto"))
        # The implicit localhost sets Ansible's own interpreter, which is the controller's and not the host's.
        own_python = variables.get("ansible_playbook_python", sys.executable)
        description["python"] = (
            None if str(python).startswith("auto") or python == own_python else str(python)
        )
        state_dir = templar.template(variables.get(STATE_DIR))
        description["state_dir"] = str(state_dir) if state_dir else None
        if kind == "local":
            description["local"] = True
            return description
        if kind not in ("ssh", "smart"):
            description["problem"] = f"uses connection '{kind}'; train-classifier supports ssh and local"
            return description
        if any(variables.get(name) for name in _PASSWORDS):
            description["problem"] = "is reached with a password; put a key on it and remove ansible_password"
            return description
        connection = connection_loader.get("ssh", PlayContext())
        connection.set_options(
            task_keys={}, var_options=connection._resolve_option_variables(variables, templar)
        )
        if connection.get_option("private_key"):
            description["problem"] = (
                "has its private key in a variable; name a file by ansible_ssh_private_key_file"
            )
            return description
        connection.host = connection.get_option("host") or host.address
        program = connection.get_option("ssh_executable")
        command = connection._build_command(program, "ssh", connection.host)
        description["ssh"] = [os.fsdecode(word) for word in command]
    except AnsibleError as error:
        description["problem"] = f"has variables that Ansible cannot resolve: {' '.join(str(error).split())}"
    return description


def main() -> None:
    """Answer one request: `{"inventory", "limit", "names_only"}`."""
    request = json.load(sys.stdin)
    # Whatever Ansible prints goes to standard error, so that standard output is one JSON object.
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        json.dump(read(request["inventory"], request["limit"], request["names_only"]), answer)


if __name__ == "__main__":
    main()
