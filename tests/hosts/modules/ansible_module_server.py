"""Runs Ansible's modules in forks of a process that has imported what each of them imports (keep_ansible_modules.py sends them).

A module of another Ansible, or under other settings of Python, is refused: it runs as usual.
"""

import base64
import contextlib
import datetime  # noqa: F401
import fcntl
import gc
import io
import marshal
import os
import platform  # noqa: F401
import re
import runpy  # noqa: F401
import shutil  # noqa: F401
import signal
import socket
import sys
import tempfile  # noqa: F401
import types
import zipfile

import keep_ansible_modules as client


def payload(source):
    """The zip file in the program that Ansible sends for a module."""
    return zipfile.ZipFile(io.BytesIO(base64.b64decode(re.search(rb"UEsD[A-Za-z0-9+/=]+", source)[0])))


class Path(list):
    """The `__path__` of a package of Ansible's that was imported: the zip file of the module that runs."""

    def __init__(self, package):
        self.folder = package.replace(".", "/")

    def __iter__(self):
        return iter([f"{path}/{self.folder}" for path in sys.path if path.endswith("_payload.zip")])


def import_common(source):
    """Import what each module imports; the checksum of each source, by its path in the zip file."""
    path = f"{client.FOLDER}/server_payload.zip"
    with payload(source) as file, open(path, "wb") as copy:
        copy.write(file.fp.getvalue())
        checksums = {entry.filename: entry.CRC for entry in file.infolist()}
    sys.path.insert(0, path)
    from ansible.module_utils._internal._ansiballz import _loader  # noqa: F401

    sys.path.remove(path)
    imported = {}
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None) or ""
        if origin.startswith(f"{path}/"):
            file = origin.removeprefix(f"{path}/")
            imported[file] = checksums[file]
            if hasattr(module, "__path__"):
                module.__path__ = Path(name)
    return imported


def run(connection, descriptors, environment, mask, source):
    """In a fork: run a module as Python runs a program from standard input."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.fchdir(descriptors.pop())
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # What the module starts inherits an empty pipe, as it does elsewhere, and no program with the module's arguments.
    reader, writer = os.pipe()
    os.close(writer)
    os.dup2(reader, 0)
    os.close(reader)
    connection.close()
    os.umask(mask)
    os.environb.clear()
    os.environb.update(environment)
    sys.argv = [""]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(source, "<stdin>", "exec"), main.__dict__)


def answer(connection, imported):
    """In a fork: take one module, have a fork of this one run it, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    first, descriptors, *_ = socket.recv_fds(connection, 4, 4)
    size, message = int.from_bytes(first, "big"), b""
    while len(message) < size:
        message += connection.recv(size - len(message))
    environment, settings, mask = marshal.loads(message)
    source = os.pread(descriptors[0], os.fstat(descriptors[0]).st_size, 0)
    with payload(source) as file:
        known = all(imported.get(entry.filename, entry.CRC) == entry.CRC for entry in file.infolist())
    if not known or settings != client.settings():
        connection.send(b"-")
        os._exit(0)
    connection.send(b"+")
    process = os.fork()
    if not process:
        run(connection, descriptors, environment, mask, source)
        return
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(OSError):
        connection.send(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def main():
    """Serve until the host stops."""
    lock = os.open(f"{client.FOLDER}/lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # Another one serves, or is about to.
    imported = import_common(os.pread(0, os.fstat(0).st_size, 0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    os.chdir("/")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(client.SOCKET)
    listener = socket.socket(socket.AF_UNIX)
    os.umask(0o77)
    listener.bind(client.SOCKET)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    while True:
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            os.close(lock)
            answer(connection, imported)
            return
        connection.close()


if __name__ == "__main__":
    main()
