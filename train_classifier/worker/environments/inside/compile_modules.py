"""Runs inside an image, by its Python (3.8 on, without site): compiles the modules of an environment.

Sent as text (`python3 -c`). Its arguments are the folder and the number of processes. No module is run.
"""

import compileall
import concurrent.futures
import functools
import os
import sys
import time
from typing import List, Tuple

#: Folders that no model imports: leaving them out saves a quarter of the time.
LEFT_OUT = {"test", "tests", "__pycache__"}
#: How many modules a process takes at once, and seconds between two lines.
CHUNK = 20
PAUSE = 1.0


def modules(folder: str) -> "List[Tuple[str, int]]":
    """Return path and size of each module."""
    sizes = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for path in (os.path.join(parent, name) for name in names if name.endswith(".py")):
            if os.path.isfile(path) and not os.path.islink(path):
                sizes.append((path, os.path.getsize(path)))
    return sizes


def main() -> None:
    """Compile, and print a line each second.

    Modules for other versions of Python do not compile, which is no error.
    """
    folder, processes = sys.argv[1], int(sys.argv[2])
    sizes = modules(folder)
    total = sum(size for _, size in sizes)
    compile_one = functools.partial(compileall.compile_file, quiet=2)
    compiled_size, last_line = 0, 0.0
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        results = pool.map(compile_one, [path for path, _ in sizes], chunksize=CHUNK)
        for (_, size), _ in zip(sizes, results):
            if time.monotonic() - last_line > PAUSE:
                last_line = time.monotonic()
                percent = 100 * compiled_size // max(total, 1)
                text = "compiling %d modules (%.1f MiB): %d %%"
                print(text % (len(sizes), total / (1 << 20), percent), flush=True)
            compiled_size += size


main()
