"""Runs Ansible's modules on test hosts at a third of the CPU time; every Python of a host imports it first.

Ansible sends a module as a program on standard input that has its sources in a zip file, and Python compiles and imports all of
them anew for each task. Here what was compiled is kept, found by the hash of its source, and root's modules are handed to
`ansible_module_server.py`, a process that has imported what every module imports. What it cannot run runs here as usual.
"""

import marshal
import os
import sys
import zipimport

FOLDER = "/var/cache/ansible-modules"
SOCKET = f"{FOLDER}/socket"
SERVER = f"{os.path.dirname(__file__)}/ansible_module_server.py"
#: They decide how Python starts; the server runs what has the same.
SETTINGS = (b"LANG", b"LC_", b"PYTHON")

compile_source = zipimport._compile_source


def keep_compiled(pathname, source):
    """The code of a module, compiled now or by an earlier task."""
    if "_payload.zip/ansible" not in pathname:
        return compile_source(pathname, source)
    import hashlib

    path = f"{FOLDER}/{hashlib.sha256(source).hexdigest()}"
    try:
        with open(path, "rb") as file:
            return marshal.load(file)
    except (OSError, EOFError, ValueError):
        code = compile_source(pathname, source)
    try:
        with open(f"{path}.{os.getpid()}", "wb") as file:
            marshal.dump(code, file)
        os.replace(file.name, path)
    except OSError:
        pass  # no root
    return code


def settings():
    """The environment variables that decide how Python starts."""
    return {name: value for name, value in os.environb.items() if name.startswith(SETTINGS)}


def hand_over():
    """Have the server run the module on standard input and end as it does; return when there is no module or no server."""
    import _socket

    memory = os.memfd_create("module")
    while block := os.read(0, 1 << 20):
        os.write(memory, block)
    os.lseek(memory, 0, os.SEEK_SET)
    # If anything goes wrong, Python finds the program here.
    os.dup2(memory, 0)
    os.close(memory)
    if b"\n_ANSIBALLZ_WRAPPER = True\n" not in os.pread(0, 1000, 0):
        return
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(SOCKET)
    except OSError:
        start_server()
        return
    mask = os.umask(0o22)
    os.umask(mask)
    descriptors = [0, 1, 2, os.open(".", os.O_RDONLY | os.O_DIRECTORY)]
    rights = b"".join(number.to_bytes(4, sys.byteorder) for number in descriptors)
    message = marshal.dumps((dict(os.environb), settings(), mask))
    connection.sendmsg(
        [len(message).to_bytes(4, "big") + message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)]
    )
    answer = connection.recv(1)
    if answer == b"+":
        status = connection.recv(1)
        os._exit(status[0] if status else 1)
    os.close(descriptors[-1])
    connection.close()


def start_server():
    """Start it from this module's sources, out of reach of this session."""
    if os.fork():
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.closerange(3, 1024)
    os.execve(
        "/usr/bin/python3",
        ["python3", SERVER],
        {**settings(), b"PATH": os.environb.get(b"PATH", b"/usr/bin:/bin")},
    )


zipimport._compile_source = keep_compiled
if sys.orig_argv == ["/usr/bin/python3"] and os.getuid() == os.geteuid() == 0 and not os.isatty(0):
    try:
        hand_over()
    except OSError:
        pass  # It runs as usual.
