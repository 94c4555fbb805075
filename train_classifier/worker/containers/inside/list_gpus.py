"""Runs inside a job's image and environment: which frameworks import, and how many GPUs each lists.

Sent as text (`python3 -c`), so it imports nothing of ours. Each framework in a process of its own: one that
crashes takes no other along. The answer is the last line of its output: JSON.
"""

import json
import subprocess
import sys

COUNT = {
    "tensorflow": "import tensorflow as m; n = len(m.config.list_physical_devices('GPU'))",
    "torch": "import torch as m; n = m.cuda.device_count() if m.cuda.is_available() else 0",
    "jax": (
        "import jax as m\n"
        "try:\n    n = len(m.devices('gpu'))\n"
        "except RuntimeError as error:\n    print(error); n = 0"
    ),
}
END = "\nimport sys; print('gpus=%d version=%s' % (n, m.__version__)); sys.stdout.flush()"


def main() -> None:
    """Ask each framework that is there."""
    from importlib.util import find_spec

    answer = {}
    for name, program in COUNT.items():
        if find_spec(name) is None:
            continue
        process = subprocess.run(
            [sys.executable, "-c", program + END],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        output = process.stdout.decode("utf-8", "replace")
        last = [line for line in output.splitlines() if line.startswith("gpus=")]
        counted = last[-1].split() if last else None
        answer[name] = {
            "gpus": int(counted[0][5:]) if counted else None,
            "version": counted[1][8:] if counted else None,
            "output": output[-3000:],
        }
    print()
    print("train-classifier:" + json.dumps(answer))


main()
