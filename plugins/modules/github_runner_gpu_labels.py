#!/usr/bin/python
"""Runner labels that say which GPUs this host has: gpu, model, memory, CUDA, driver. None without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: github_runner_gpu_labels
short_description: Labels from what nvidia-smi answers
description:
  - For the role github_runner only.
options: {}
"""


def slug(text: str) -> str:
    """Return a text as it may stand in a label."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def from_answers(query: str, header: str) -> list[str]:
    """Labels from `--query-gpu=name,memory.total,driver_version` (CSV, no units) and nvidia-smi's header."""
    labels: list[str] = []
    for line in query.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 3 or not fields[0] or "N/A" in fields[0]:
            continue
        name, memory, driver = fields
        labels.append("gpu")
        model = re.sub(r"^(nvidia|geforce|tesla|quadro)-", "", re.sub(r"^nvidia-", "", slug(name)))
        labels.append(f"gpu-{model}")
        if memory.isdigit():
            labels.append(f"vram-{round(int(memory) / 1024)}g")
        if re.fullmatch(r"\d+(\.\d+)*", driver):
            labels.append(f"driver-{driver.split('.')[0]}")
    cuda = re.search(r"CUDA Version:\s*(\d+\.\d+)", header)
    if labels and cuda:
        labels.append(f"cuda-{cuda.group(1)}")
    return list(dict.fromkeys(labels))


def answer_of(command: list[str]) -> tuple[str | None, str]:
    """Standard output, or None and the reason."""
    try:
        result = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{command[0]}: {error}"
    if result.returncode != 0:
        message = " ".join((result.stdout + result.stderr).split())[:300]
        return None, f"nvidia-smi ended with {result.returncode}: {message}"
    return result.stdout, ""


def main() -> None:
    """Return the labels of the cards of this host."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    smi = shutil.which("nvidia-smi")
    if not smi:
        module.exit_json(changed=False, labels=[], problem="")
    query, problem = answer_of(
        [smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    )
    header, _ = answer_of([smi])
    module.exit_json(changed=False, labels=from_answers(query or "", header or ""), problem=problem)


if __name__ == "__main__":
    main()
