"""Detects private keys, and files with settings that should not be pushed, by name and content."""

import os
import re

from train_classifier.core import regular_file

#: Bytes read of a candidate: a certificate chain may come before the key.
LOOK = 65536
_CANDIDATE = re.compile(
    rb"(?:\.(?:pem|key|ppk|p12|pfx|p8|pk8|jks|keystore|asc|gpg)"
    rb"|(?:^|[_.@-])(?:id_)?(?:rsa|dsa|ecdsa|ed25519)(?:_sk)?(?:[_.-](?:old|bak|backup|key))?"
    rb"|(?:^|[_.-])(?:identity|deploy|key|private))\Z",
    re.IGNORECASE,
)
#: Source code and documents are not read: a key in them is most likely an example or part of a test.
_SOURCE_CODE = frozenset(
    b".py .pyi .pyx .ipynb .c .cc .cpp .cu .h .hpp .java .js .jsx .ts .tsx .go .rs .rb .pl .php .cs .swift"
    b" .kt .scala .lua .r .jl .m .md .rst .tex .html .htm .css .diff .patch".split()
)
#: Larger than any key in a separate file.
MOST_KEY = 16384
_ARMOUR = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|---- BEGIN SSH2 (?:ENCRYPTED )?PRIVATE KEY"
)
_DER_NAMES = (b".p12", b".pfx", b".p8", b".pk8")
_TEMPLATES = re.compile(rb"\.(?:example|sample|template|tmpl|dist|defaults?)\Z", re.IGNORECASE)


def is_candidate(name: bytes, status: os.stat_result) -> bool:
    """Return whether a file is read: if its name is that of a key, or if it is small and no source code."""
    if _CANDIDATE.search(name):
        return status.st_size > 0
    return 100 <= status.st_size <= MOST_KEY and _suffix(name) not in _SOURCE_CODE


def _suffix(name: bytes) -> bytes:
    dot = name.rfind(b".")
    return name[dot:].lower() if dot > 0 else b""


def is_private_key(path: bytes) -> bool:
    """Return whether a file holds a private key: PEM, OpenSSH, PGP, PuTTY, PKCS or Java.

    Raises OSError when the file cannot be read.
    """
    head = regular_file.start(path, LOOK)
    if _ARMOUR.search(head) or head.startswith((b"PuTTY-User-Key-File-", b"\xfe\xed\xfe\xed")):
        return True
    return path.lower().endswith(_DER_NAMES) and head.startswith(b"\x30")


def is_environment_file(name: bytes) -> bool:
    """Return whether a file is a `.env` with settings, not a sample of one."""
    return (name == b".env" or name.startswith(b".env.")) and not _TEMPLATES.search(name)
