"""Has ansible-playbook load once what its forks, one a task, would each load for themselves.

The modules as they are sent to a host are made once for all runs that name the same folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import ansible.parsing.yaml.dumper
import ansible.plugins.action.command
import ansible.plugins.action.normal
import ansible.utils.encrypt  # noqa: F401
from ansible import constants
from ansible.module_utils._internal._json._profiles import (  # noqa: F401
    _module_legacy_c2m,
    _module_legacy_m2c,
)
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import filter_loader, test_loader

OURS = "incuvers.train_classifier"
FILTERS = Path(__file__).parents[3] / "plugins/filter"


class CallbackModule(CallbackBase):
    """Called before the first fork; prints nothing."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "load_once"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, playbook: object) -> None:
        for loader in (filter_loader, test_loader):
            list(loader.all())
        for file in FILTERS.glob("*.py"):
            filter_loader.get(f"{OURS}.{file.stem}")
        modules = Path(constants.DEFAULT_LOCAL_TMP) / "ansiballz_cache"
        modules.symlink_to(os.environ["ANSIBLE_LOAD_ONCE_MODULES"])
