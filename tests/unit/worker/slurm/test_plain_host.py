"""A host without Slurm pays nothing for it."""

import subprocess
import sys

PROGRAM = """
import sys
from train_classifier.worker import api
from train_classifier.worker.checks import host_check
from train_classifier.worker.jobs import clean, run
print([name for name in sys.modules if "slurm" in name or "cluster" in name])
"""


def test_worker_imports_nothing_of_slurm() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
