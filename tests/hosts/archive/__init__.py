"""A stand-in for a distribution's archive on a test host: tiny packages, the distribution's names, apt's own solver."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..machine import HostError, TestHost, run

MAKE = Path(__file__).with_name("make.py")
FOLDER = "/srv/archive"
KEYRING = "/usr/share/keyrings/ubuntu-archive-keyring.asc"
#: NVIDIA's repository, and where its package brings its key.
CUDA = "/srv/cuda"
#: Docker's own repository.
DOCKER = "/srv/docker"
CUDA_KEYRING = "usr/share/keyrings/cuda-archive-keyring.asc"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package: its control fields, and its files by path (text, or bytes of a kernel module)."""

    name: str
    version: str
    source: str
    #: With its component, as Ubuntu writes it: `restricted/kernel`; of `main` without.
    section: str = "misc"
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    kernel: str = ""
    module: str = ""
    #: Packages of the host's own sources whose files, scripts and dependencies it has, but for dependencies on `without`.
    like: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def kernel_module(version: str) -> bytes:
    """An ELF file with nothing but a .modinfo section: modinfo reads its version, no kernel would load it."""
    info = f"version={version}\0license=simulated\0name=nvidia\0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    header = 64
    sections = [
        struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, header, len(info), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, header + len(info), len(names), 0, 0, 1, 0),
    ]
    start = header + len(info) + len(names)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, start, 0, 64, 0, 0, 64, len(sections), 2)
    return elf + info + names + b"".join(sections)


@contextlib.contextmanager
def gnupg() -> Iterator[Callable[..., bytes]]:
    """Run gpg in a home of its own; its agent ends with the block: it would outlive a worker of pytest-xdist."""
    if not shutil.which("gpg"):
        raise HostError("gpg signs the stand-in archives: apt-get install gnupg")
    with tempfile.TemporaryDirectory(prefix="tc-archive-key-", ignore_cleanup_errors=True) as home:
        options = ["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase"]
        command = ["gpg", "--homedir", home, *options, ""]

        def gpg(*arguments: str, data: bytes = b"") -> bytes:
            done = subprocess.run([*command, *arguments], input=data, capture_output=True, check=True)
            return done.stdout

        try:
            yield gpg
        finally:
            run("gpgconf", "--homedir", home, "--kill", "all")


@functools.cache
def _keys() -> tuple[bytes, bytes]:
    """The public and the secret key that sign the archives of this test run."""
    with gnupg() as gpg:
        gpg("--quick-gen-key", "Stand-in <tests@example.org>", "ed25519", "sign", "never")
        return gpg("--armor", "--export"), gpg("--export-secret-keys")


def signing_key() -> bytes:
    """The public key of the archives, as apt reads it."""
    return _keys()[0]


def _sign(text: str) -> str:
    with gnupg() as gpg:
        gpg("--import", data=_keys()[1])
        return gpg("--clearsign", data=text.encode()).decode()


def make(
    host: TestHost,
    packages: Iterable[Package],
    folder: str,
    suite: str = "",
    origin: str = "Origin: Ubuntu",
) -> None:
    """Make a signed archive of these packages on the host."""
    table = []
    for package in packages:
        row = asdict(package)
        row["module"] = (
            base64.b64encode(kernel_module(package.module)).decode("ascii") if package.module else ""
        )
        table.append(row)
    host.write("/srv/make-archive", MAKE.read_text())
    command = ("python3", "/srv/make-archive", folder, suite, origin)
    release = host.exec(*command, input=json.dumps(table)).stdout.strip()
    host.write(str(Path(release).with_name("InRelease")), _sign(host.shell(f"cat {release}")))


def publish(host: TestHost, packages: Iterable[Package], suite: str = "noble") -> None:
    """Make a signed archive of these packages, laid out as Ubuntu's is, the host's only package source."""
    make(host, packages, FOLDER, suite)
    host.write(KEYRING, signing_key().decode())
    host.shell("rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*")
    host.write(
        "/etc/apt/sources.list.d/ubuntu.sources",
        f"Types: deb\nURIs: file:{FOLDER}\nSuites: {suite}\nComponents: main restricted universe multiverse\n"
        f"Signed-By: {KEYRING}\n",
    )
    host.shell("apt-get -qq update")


def docker_repository(host: TestHost, version: str = "5:28.5.2-1~debian.13~trixie") -> dict[str, str]:
    """Make a stand-in for Docker's own repository: its names and relations, with the engine of the host's Debian 13.

    Returns the role's variables for it.
    """
    engine = ("docker.io", "docker-cli", "containerd", "runc")
    row = functools.partial(Package, version=version, section="stable/admin", without=engine)

    def instead(*names: str, depends: str = "") -> dict[str, str]:
        fields = {name: ", ".join(names) for name in ("Conflicts", "Replaces")}
        return {**fields, "Provides": ", ".join(names), **({"Depends": depends} if depends else {})}

    packages = [
        row(
            name="docker-ce", source="docker-ce", like=("docker.io",),
            fields=instead("docker.io", depends="containerd.io (>= 1.7.27), docker-ce-cli"),
        ),
        row(name="docker-ce-cli", source="docker-ce", like=("docker-cli",), fields=instead("docker-cli")),
        row(
            name="containerd.io", source="containerd.io", version="1.7.28-1", like=("runc", "containerd"),
            fields=instead("containerd", "runc"),
        ),
        row(name="docker-buildx-plugin", source="docker-buildx-plugin"),
    ]  # fmt: skip
    host.shell("apt-get -qq update")
    make(host, packages, f"{DOCKER}/debian", "trixie", "Origin: Docker\nLabel: Docker CE")
    host.write(f"{DOCKER}/debian/gpg", signing_key().decode())
    return {
        "docker_engine_source": "docker",
        "docker_engine_repository_url": f"file://{DOCKER}",
        "docker_engine_key_checksum": f"sha256:{host.shell(f'sha256sum {DOCKER}/debian/gpg').split()[0]}",
    }


def ubuntu_kernel(abi: int, flavour: str = "generic", *, meta: bool = True) -> list[Package]:
    """Ubuntu's packages of a kernel; `meta` adds the packages that bring it: linux-generic and its parts."""
    name, version = f"6.8.0-{abi}-{flavour}", f"6.8.0-{abi}.{abi}"
    row = functools.partial(Package, version=version, section="kernel")
    packages = [
        row(
            name=f"linux-image-{name}", source="linux-signed",
            fields={"Depends": f"linux-modules-{name}"}, files={f"boot/vmlinuz-{name}": name},
        ),
        row(name=f"linux-modules-{name}", source="linux"),
        row(name=f"linux-headers-{name}", source="linux"),
    ]  # fmt: skip
    if meta:
        both = f"linux-image-{flavour} (= {version}), linux-headers-{flavour} (= {version})"
        packages += [
            row(
                name=f"linux-image-{flavour}", source="linux-meta", fields={"Depends": f"linux-image-{name}"}
            ),
            row(
                name=f"linux-headers-{flavour}",
                source="linux-meta",
                fields={"Depends": f"linux-headers-{name}"},
            ),
            row(name=f"linux-{flavour}", source="linux-meta", fields={"Depends": both}),
        ]
    return packages


def ubuntu_modules(
    branch: str, abi: int, driver: str, flavour: str = "generic", *, meta: bool = True
) -> list[Package]:
    """Ubuntu's signed modules of a driver for one kernel; `branch` is such as `580-server-open`."""
    kernel, version = f"6.8.0-{abi}-{flavour}", f"6.8.0-{abi}.{abi}+1"
    common = f"nvidia-kernel-common-{branch.removesuffix('-open')}"
    bounds = f"{common} (<= {driver}-1), {common} (>= {driver})"
    row = functools.partial(
        Package, version=version, source="linux-restricted-modules", section="restricted/kernel"
    )
    image = f"linux-image-{kernel} | linux-image-unsigned-{kernel}"
    one = f"linux-modules-nvidia-{branch}-{kernel}"
    packages = [row(name=one, fields={"Depends": f"{image}, {bounds}"}, kernel=kernel, module=driver)]
    if meta:
        depends = {"Depends": f"{one} (= {version}), {bounds}"}
        packages.append(row(name=f"linux-modules-nvidia-{branch}-{flavour}", fields=depends))
    return packages


def ubuntu_driver(branch: str, driver: str) -> list[Package]:
    """The rest of a driver of Ubuntu: `branch` is such as `580-server`. No two branches go together."""
    common, compute = f"nvidia-kernel-common-{branch}", f"libnvidia-compute-{branch} (>= {driver})"
    parts = {
        "nvidia-kernel-common": "",
        "libnvidia-compute": f"{common}-{driver}",
        "nvidia-utils": f"{compute}, {common}-{driver}",
        "nvidia-compute-utils": compute,
    }
    packages = []
    for part, depends in parts.items():
        provides = f"{part}, {common}-{driver}" if part == "nvidia-kernel-common" else part
        fields = {"Provides": provides, "Conflicts": part, "Replaces": part}
        packages.append(
            Package(
                name=f"{part}-{branch}", version=f"{driver}-0ubuntu0.24.04.1",
                source=f"nvidia-graphics-drivers-{branch}", section="restricted/libs",
                fields={**fields, **({"Depends": depends} if depends else {})},
            )
        )  # fmt: skip
    return packages


def cuda_repository(host: TestHost, *drivers: str) -> str:
    """Make a stand-in for NVIDIA's repository with the names from branch 590 on; return the checksum of the key's package."""
    release = host.shell('. /etc/os-release; printf %s "$ID$VERSION_ID" | tr -d .')
    folder = f"{CUDA}/{release}/x86_64"
    key = f"base64:{base64.b64encode(signing_key()).decode()}"
    source = f"deb [signed-by=/{CUDA_KEYRING}] file://{folder} /\n"
    packages = [
        Package(
            name="cuda-keyring", version="1.1-1", source="cuda-keyring",
            files={CUDA_KEYRING: key, f"etc/apt/sources.list.d/cuda-{release}-x86_64.list": source},
        )
    ]  # fmt: skip
    for driver in drivers:
        row = functools.partial(Package, version=f"{driver}-1ubuntu1", source="nvidia-graphics-drivers")
        compute = {"Depends": f"libnvidia-compute (= {driver}-1ubuntu1)"}
        packages += [
            row(name=f"nvidia-driver-pinning-{driver.split('.')[0]}"),
            row(name="libnvidia-compute"),
            row(name="nvidia-persistenced"),
            row(name="nvidia-utils", fields=compute),
            row(name="nvidia-dkms-open", fields=compute, kernel="6.8.0-60-generic", module=driver),
        ]
    make(host, packages, folder)
    deb = f"{folder}/cuda-keyring_1.1-1_all.deb"
    host.shell(f"cp {folder}/cuda-keyring_1.1-1.deb {deb}")
    return f"sha256:{host.shell(f'sha256sum {deb}').split()[0]}"
