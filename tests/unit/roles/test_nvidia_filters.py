"""The filters of the NVIDIA roles: which driver for which card, a key's fingerprint, merging, the table's rows."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import itertools
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hosts.archive import gnupg

ROOT = Path(__file__).parents[3]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


common = load("plugins/filter/common.py")
driver = load("plugins/filter/nvidia_driver.py")
toolkit = load("plugins/filter/nvidia_container_toolkit.py")
lists = load("roles/common/files/apt_lists.py")
check = load("plugins/filter/host_check.py")
TABLE = yaml.safe_load((ROOT / "roles/nvidia_driver/vars/main.yml").read_text())[
    "__nvidia_driver_architectures"
]
SIGNED = yaml.safe_load((ROOT / "roles/nvidia_driver/vars/ubuntu.yml").read_text())["__nvidia_driver_signed"]


def cards(*devices: int) -> list[dict[str, Any]]:
    lines = [f"0000:{slot:02x}:00.0 0x10de {device:#06x} 0x030200" for slot, device in enumerate(devices, 1)]
    return driver.cards(lines, TABLE)


@pytest.mark.parametrize(
    ("device", "architecture", "module"),
    [
        (0x102D, "older than Maxwell", "none"),  # Tesla K80
        (0x13C2, "Maxwell", "proprietary"),  # GTX 970
        (0x17C8, "Maxwell", "proprietary"),  # GTX 980 Ti
        (0x15F8, "Pascal", "proprietary"),  # Tesla P100
        (0x1B06, "Pascal", "proprietary"),  # GTX 1080 Ti
        (0x1DB4, "Volta", "proprietary"),  # Tesla V100
        (0x1EB8, "Turing", "either"),  # Tesla T4
        (0x2184, "Turing", "either"),  # GTX 1660
        (0x20B0, "Ampere", "either"),  # A100
        (0x2204, "Ampere", "either"),  # RTX 3090
        (0x2330, "Hopper", "either"),  # H100
        (0x2684, "Ada", "either"),  # RTX 4090
        (0x2B85, "Blackwell", "open"),  # RTX 5090
        (0x2901, "Blackwell", "open"),  # B200
        (0x4000, "newer than this role knows", "open"),
    ],
)
def test_architecture_follows_from_the_id(device: int, architecture: str, module: str) -> None:
    [card] = cards(device)
    assert (card["architecture"], card["module"]) == (architecture, module)


def test_only_nvidia_display_devices_are_cards() -> None:
    lines = [
        "0000:01:00.0 0x10de 0x2204 0x030000",
        "0000:01:00.1 0x10de 0x1aef 0x040300",  # its sound
        "0000:02:00.0 0x1002 0x73bf 0x030000",  # another vendor's
        "0000:03:00.0 0x10de 0x22a3 0x068000",  # an NVSwitch
        "garbage",
    ]
    assert [card["slot"] for card in driver.cards(lines, TABLE)] == ["0000:01:00.0"]
    assert driver.switches(lines) == ["0000:03:00.0"]


@pytest.mark.parametrize(
    ("devices", "branch", "settings", "expected"),
    [
        # Debian 12 and 13 serve an A100 themselves.
        ([0x20B0], 535, {}, ("distribution", 535, "proprietary")),
        ([0x20B0], 550, {}, ("distribution", 550, "proprietary")),
        # A GTX 970 on a distribution with 580.
        ([0x13C2], 580, {}, ("distribution", 580, "proprietary")),
        # From 560 on the open module is the default where it serves.
        ([0x2684], 580, {}, ("distribution", 580, "open")),
        # Blackwell is newer than Debian's branches: NVIDIA's repository, the open module.
        ([0x2B85], 550, {}, ("cuda_repository", 580, "open")),
        ([0x13C2, 0x2204], 550, {"source": "cuda_repository"}, ("cuda_repository", 580, "proprietary")),
        ([0x2204], 550, {"branch": 570}, ("cuda_repository", 570, "open")),
        ([0x2204], 550, {"module": "open"}, ("distribution", 550, "open")),
        # Only NVIDIA's repository keeps exact versions.
        ([0x2204], 580, {"version": "570.86.10"}, ("cuda_repository", 570, "open")),
        ([0x2204], 580, {"version": "580.95.05", "branch": 580}, ("cuda_repository", 580, "open")),
        ([0x2204], 580, {"version": "580.95.05", "source": "distribution"}, ("distribution", 580, "open")),
    ],
)
def test_driver_is_chosen_by_card(
    devices: list[int], branch: int, settings: dict[str, Any], expected: tuple[str, int, str]
) -> None:
    plan = driver.plan(cards(*devices), branch, **settings)
    assert plan["problem"] == ""
    assert (plan["source"], plan["branch"], plan["module"]) == expected


@pytest.mark.parametrize(
    ("devices", "settings", "sentence"),
    [
        ([0x102D], {}, "needs the driver branch 470 or older"),
        ([0x1B06, 0x2B85], {}, "No driver serves all cards"),
        ([0x13C2], {"branch": 590}, "the last that does is 580"),
        ([0x2B85], {"source": "distribution"}, "does not know the card"),
        ([0x1B06], {"module": "open"}, "open kernel module does not serve"),
        ([0x2B85], {"module": "proprietary"}, "proprietary kernel module does not serve"),
        ([0x2204], {"source": "distribution", "branch": 580}, "packages the driver branch 550, not 580"),
        ([0x1500], {}, "not in this role's table"),
        ([0x2204], {"version": "580"}, "takes one exact version, such as 580.95.05"),
        ([0x2204], {"version": "580.95.05", "branch": 570}, "is not of nvidia_driver_branch 570"),
        ([0x1B06], {"version": "590.48.01"}, "the last that does is 580"),
    ],
)
def test_cards_that_no_driver_serves_are_refused(
    devices: list[int], settings: dict[str, Any], sentence: str
) -> None:
    assert sentence in driver.plan(cards(*devices), 550, **settings)["problem"]


NVSWITCH = {"switches": ["0000:05:00.0"]}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Debian packages no fabric manager, without which no card behind an NVSwitch computes.
        ({"fabric": False, **NVSWITCH}, ("cuda_repository", 580, "open")),
        ({"fabric": False}, ("distribution", 535, "proprietary")),
        ({"fabric": True, **NVSWITCH}, ("distribution", 535, "proprietary")),
        ({"fabric": False, "branch": 535, **NVSWITCH}, ("cuda_repository", 535, "proprietary")),
    ],
)
def test_nvswitch_needs_a_source_with_fabric_manager(
    settings: dict[str, Any], expected: tuple[str, int, str]
) -> None:
    plan = driver.plan(cards(0x20B0), 535, **settings)
    assert (plan["problem"], plan["source"], plan["branch"], plan["module"]) == ("", *expected)


def test_nvswitch_without_a_fabric_manager_is_refused() -> None:
    plan = driver.plan(cards(0x20B0), 535, "distribution", fabric=False, **NVSWITCH)
    assert (
        "NVSwitch bridges (0000:05:00.0), and its distribution packages no fabric manager" in plan["problem"]
    )


@pytest.mark.parametrize(
    ("kernels", "images", "expected"),
    [
        # By the package that brings kernels.
        (
            ["6.12.43+deb13-amd64", "6.12.48+deb13-amd64"],
            ["linux-image-6.12.43+deb13-amd64", "linux-image-6.12.48+deb13-amd64", "linux-image-amd64"],
            ["linux-headers-6.12.43+deb13-amd64", "linux-headers-6.12.48+deb13-amd64", "linux-headers-amd64"],
        ),
        (
            ["6.8.0-45-generic"],
            [
                "linux-image-6.8.0-45-generic",
                "linux-image-generic-hwe-22.04",
                "linux-image-unsigned-6.8.0-generic",
            ],
            ["linux-headers-6.8.0-45-generic", "linux-headers-generic-hwe-22.04"],
        ),
        # Else by the flavour of the kernel.
        (
            ["6.1.0-25-cloud-amd64"],
            ["linux-image-6.1.0-25-cloud-amd64"],
            ["linux-headers-6.1.0-25-cloud-amd64", "linux-headers-cloud-amd64"],
        ),
        (["6.1.0-25-amd64"], [], ["linux-headers-6.1.0-25-amd64", "linux-headers-amd64"]),
        (["6.8.0-1018-aws"], [], ["linux-headers-6.8.0-1018-aws", "linux-headers-aws"]),
        (["6.8.0-1044-azure-fde"], [], ["linux-headers-6.8.0-1044-azure-fde", "linux-headers-azure-fde"]),
        (["6.8.0-60-generic-64k"], [], ["linux-headers-6.8.0-60-generic-64k", "linux-headers-generic-64k"]),
        (["6.1.0-0.deb11.21-amd64"], [], ["linux-headers-6.1.0-0.deb11.21-amd64", "linux-headers-amd64"]),
        (["6.12.1"], [], ["linux-headers-6.12.1"]),
    ],
)
def test_headers_of_installed_and_later_kernels(
    kernels: list[str], images: list[str], expected: list[str]
) -> None:
    assert driver.header_packages(kernels, images) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["deb http://deb.debian.org/debian trixie main"], "http://deb.debian.org/debian"),
        (["deb [signed-by=/k] https://m.example.org/debian/ trixie main"], "https://m.example.org/debian"),
        # Debian's cloud images.
        (
            [
                "URIs: mirror+file:///etc/apt/mirrors/debian-security.list",
                "URIs: mirror+file:///etc/apt/mirrors/debian.list",
            ],
            "mirror+file:///etc/apt/mirrors/debian.list",
        ),
        (["URIs: http://security.debian.org/debian-security"], ""),
        (
            ["URIs: http://apt.example.org/debian-security http://apt.example.org/debian"],
            "http://apt.example.org/debian",
        ),
        ([], ""),
    ],
)
def test_hosts_own_mirror_is_found(lines: list[str], expected: str) -> None:
    assert driver.mirror(lines) == expected


def test_ranges_of_the_table_do_not_overlap() -> None:
    rows = sorted((row["first"], row["last"]) for row in TABLE)
    assert all(first <= last for first, last in rows)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(rows))


@pytest.mark.skipif(not shutil.which("gpg"), reason="gpg makes the keys to compare with")
@pytest.mark.parametrize("algorithm", ["ed25519", "rsa2048"])
def test_fingerprint_equals_that_of_gpg(algorithm: str) -> None:
    with gnupg() as gpg:
        gpg("--quick-gen-key", "t <t@example.org>", algorithm, "sign")
        armoured = gpg("--armor", "--export").decode()
        listed = gpg("--with-colons", "--list-keys").decode()
    expected = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))
    assert toolkit.fingerprint(armoured) == expected


def armour(*packets: bytes, blank: str = "") -> str:
    body = base64.encodebytes(b"".join(packets)).decode()
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n{blank}\n{body}-----END PGP PUBLIC KEY BLOCK-----\n"


def packet(kind: int, body: bytes) -> bytes:
    return bytes([0xC0 | kind, len(body)]) + body


GOOD, EVIL = packet(6, b"\x04good"), packet(6, b"\x04evil")
#: A name, and a signature.
REST = packet(13, b"me") + packet(2, b"\x04sig")


def test_fingerprint_ignores_subkeys_and_signatures() -> None:
    fingerprint = toolkit.fingerprint(armour(GOOD, REST))
    assert fingerprint == hashlib.sha1(b"\x99\x00\x05\x04good").hexdigest().upper()
    # A subkey belongs to it.
    assert toolkit.fingerprint(armour(GOOD, REST, packet(14, b"\x04sub"), REST)) == fingerprint
    # The old form of a packet's header: tag 6, a length of one octet.
    assert toolkit.fingerprint(armour(bytes([0x98, 5]), b"\x04good", REST)) == fingerprint


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(armour(GOOD, REST, EVIL, REST), id="two keys in one block"),
        pytest.param(armour(GOOD, REST) + armour(EVIL, REST), id="two blocks"),
        pytest.param(armour(EVIL, REST) + armour(GOOD, REST), id="two blocks, the other first"),
        pytest.param(armour(GOOD, packet(5, b"\x04evil")), id="a secret key"),
        pytest.param(armour(GOOD, b"\xc6"), id="cut in a header"),
        pytest.param(armour(GOOD, b"\xc6\x20\x04evil"), id="cut in a body"),
        pytest.param(armour(GOOD, b"\xe6evil"), id="a length in parts"),
        pytest.param(armour(GOOD, b"\x00\x01\x02"), id="no packet"),
        pytest.param(armour(GOOD, bytes([0x9B]), b"\x04evil"), id="a length without end"),
        # gpg takes a line of blanks as the end of the headers.
        pytest.param(
            armour(EVIL, blank=" \n").replace("-----END", armour(GOOD).split("\n", 1)[1] + "-----END", 1),
            id="two bodies",
        ),
        pytest.param("evil\n" + armour(GOOD), id="something before"),
        pytest.param(armour(GOOD) + "evil\n", id="something after"),
    ],
)
def test_more_than_one_key_has_no_fingerprint(text: str) -> None:
    assert toolkit.fingerprint(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>",
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!\n",
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n",
    ],
)
def test_other_text_has_no_fingerprint(text: str) -> None:
    assert toolkit.fingerprint(text) == ""


TOOLKIT_LISTS = ("nvidia_container_toolkit", ["nvidia.github.io"])
LINE = "deb [signed-by=/k] https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH) /\n"
OTHER = "deb http://deb.debian.org/debian trixie main\n"
STANZA = "Types: deb\nURIs: https://nvidia.github.io/libnvidia-container/stable/deb/amd64\nSuites: /\n"
TWO = """Types: deb
# both
URIs: http://mirror.example.org/apt
 https://nvidia.github.io/libnvidia-container/stable/deb/amd64
Suites: /
"""
DEBIAN = "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: trixie\nComponents: main\n"


@pytest.mark.parametrize(
    ("name", "text", "remaining"),
    [
        ("a.list", OTHER + LINE, [OTHER.strip()]),
        ("a.list", f"# {LINE}{OTHER}", [OTHER.strip()]),
        ("sources.list", LINE, []),
        ("a.sources", f"{DEBIAN}\n{STANZA}", DEBIAN.splitlines()),
        ("a.sources", f"{STANZA}\n\n{DEBIAN}", DEBIAN.splitlines()),
        ("a.sources", TWO, ["Types: deb", "URIs: http://mirror.example.org/apt", "Suites: /"]),
    ],
)
def test_other_lists_are_disabled_and_restored(
    tmp_path: Path, name: str, text: str, remaining: list[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    path.chmod(0o640)
    lists.disable([path], tmp_path / "away", *TOOLKIT_LISTS)
    read = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert read == remaining
    lists.restore([path], tmp_path / "away", tmp_path, TOOLKIT_LISTS[0])
    assert path.read_text() == text
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(one.name for one in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize(("name", "text"), [("nvidia.list", LINE), ("nvidia.sources", STANZA)])
def test_list_of_nothing_else_is_moved_and_restored(tmp_path: Path, name: str, text: str) -> None:
    path, away = tmp_path / name, tmp_path / "away"
    path.write_text(text)
    assert lists.disable([path], away, *TOOLKIT_LISTS) == [str(path)]
    assert not path.exists()
    assert lists.disable([path], away, *TOOLKIT_LISTS) == []
    lists.restore([], away, tmp_path, TOOLKIT_LISTS[0])
    assert path.read_text() == text


def test_lists_are_restored_byte_by_byte(tmp_path: Path) -> None:
    """Neither Latin-1 nor other ends of lines change, and neither stops the role."""
    path = tmp_path / "old.list"
    text = f"# f\xfcr M\xfcller\r\n{LINE}{OTHER}# ende".encode("latin-1")
    path.write_bytes(text)
    assert lists.disable([path], tmp_path / "away", *TOOLKIT_LISTS) == [str(path)]
    assert b"\n# put out by the role nvidia_container_toolkit: deb" in path.read_bytes()
    lists.restore([path], tmp_path / "away", tmp_path, TOOLKIT_LISTS[0])
    assert path.read_bytes() == text


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        # A comment names the repository, and the entry is another one.
        ("sources.list", "deb http://deb.debian.org/debian bookworm main # not nvidia.github.io\n", 1),
        ("a.list", f"deb [arch=amd64 signed-by=/k] {LINE.split()[2]} /\n{OTHER}", 1),
        ("a.sources", f"Enabled: no\n{STANZA}", 0),
        ("a.sources", STANZA + "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDMEX\n", 0),
        # Comments between the lines of a field.
        ("a.sources", "Types: deb\nURIs: http://mirror.example.org/a\n# Two.\n https://nvidia.github.io/b\nSuites: /\n", 3),
        ("a.sources", f"{STANZA.rstrip()}\r\n\r\n{DEBIAN}".replace("\n", "\r\n").replace("\r\r", "\r"), None),
    ],
)  # fmt: skip
def test_lists_in_odd_forms_lose_only_the_repository(
    tmp_path: Path, name: str, text: str, kept: int | None
) -> None:
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / name
    path.write_bytes(text.encode())
    lists.disable([path], tmp_path / "away", *TOOLKIT_LISTS)
    now = path.read_text() if path.exists() else ""
    read = [line for line in now.splitlines() if line.strip() and not line.startswith("#")]
    assert not [line for line in read if "nvidia" in line.partition("#")[0]]
    assert len(read) == (len(DEBIAN.splitlines()) if kept is None else kept)
    lists.restore([path], tmp_path / "away", tmp_path / "lists", TOOLKIT_LISTS[0])
    assert path.read_bytes() == text.encode()


@pytest.mark.parametrize(
    ("name", "text"), [("sources.list", LINE + OTHER), ("a.list", LINE + OTHER), ("b.list", LINE)]
)
def test_links_are_restored_and_what_they_name_is_not_written(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "real").write_text(text)
    path = tmp_path / "lists" / name
    path.symlink_to("../real")
    assert lists.disable([path], tmp_path / "away", *TOOLKIT_LISTS) == [str(path)]
    assert (tmp_path / "real").read_text() == text
    assert not path.exists() or "\n# put out by the role" in f"\n{path.read_text()}"
    remaining = [path] if path.exists() else []
    assert lists.restore(remaining, tmp_path / "away", tmp_path / "lists", TOOLKIT_LISTS[0]) == [str(path)]
    assert path.is_symlink() and path.read_text() == text
    assert not list((tmp_path / "away").iterdir())


def test_lists_with_a_password_are_never_open_to_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "a.list", []
    path.write_text(LINE + OTHER)
    path.chmod(0o600)
    monkeypatch.setattr(lists.shutil, "copystat", lambda _, new: seen.append(new.stat().st_mode & 0o777))
    lists.disable([path], tmp_path / "away", *TOOLKIT_LISTS)
    assert seen == [0o600]


def test_line_that_took_the_place_of_the_role_is_not_lost(tmp_path: Path) -> None:
    """Somebody removed the line that the role put in the place of another."""
    path = tmp_path / "a.sources"
    path.write_text(TWO)
    lists.disable([path], tmp_path / "away", *TOOLKIT_LISTS)
    lines = [line for line in path.read_text().split("\n") if not line.startswith("URIs:")]
    path.write_text("\n".join(lines))
    lists.restore([path], tmp_path / "away", tmp_path, TOOLKIT_LISTS[0])
    assert path.read_text() == TWO


def test_roles_restore_their_own_lists_only(tmp_path: Path) -> None:
    path = tmp_path / "a.list"
    cuda = "deb http://developer.download.nvidia.com/compute/cuda/repos/ubuntu2204/x86_64 /\n"
    path.write_text(OTHER + LINE + cuda)
    repository = (
        "nvidia_driver",
        ["mirror.example.org/cuda", "developer.download.nvidia.com/compute/cuda/repos"],
    )
    lists.disable([path], tmp_path / "away", *TOOLKIT_LISTS)
    lists.disable([path], tmp_path / "away", *repository)
    assert not [
        line for line in path.read_text().splitlines() if "nvidia" in line and not line.startswith("#")
    ]
    assert lists.restore([path], tmp_path / "away", tmp_path, repository[0]) == [str(path)]
    assert cuda in path.read_text() and f"\n{LINE}" not in path.read_text()
    assert lists.restore([path], tmp_path / "away", tmp_path, repository[0]) == []


@pytest.mark.parametrize(
    ("errors", "named", "expected"),
    [
        (
            ["E: Malformed entry 3 in list file /etc/apt/sources.list.d/old.list (URI)"],
            [],
            "The entry is in /etc/apt/sources.list.d/old.list: correct it, or put it aside "
            "(mv /etc/apt/sources.list.d/old.list /etc/apt/sources.list.d/old.list.disabled), and run again.",
        ),
        (
            [
                "E: Conflicting values set for option Signed-By regarding source https://m.example.org/x/ /: /k != ",
                "E: The list of sources could not be read.",
            ],
            [
                "names m.example.org/x /etc/apt/sources.list.d/a.list",
                "names m.example.org/x /etc/apt/sources.list.d/b.sources",
            ],
            "The entry is in /etc/apt/sources.list.d/a.list and /etc/apt/sources.list.d/b.sources: correct it",
        ),
        # The distribution's own list is not put aside.
        (
            ["E: Type 'dbe' is not known on line 1 in source list /etc/apt/sources.list"],
            [],
            "The entry is in /etc/apt/sources.list: correct it, and run again.",
        ),
        (["W: Some index files failed", "E: Unable to lock directory /var/lib/apt/lists/"], [], ""),
    ],
)
def test_error_of_apt_names_the_list_and_the_command(
    errors: list[str], named: list[str], expected: str
) -> None:
    text = common.apt_problem(errors, named)
    assert text.startswith(expected) and bool(text) == bool(expected)


def test_restored_lists_are_checked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "LISTS", tmp_path / "state")
    (tmp_path / "state").mkdir()
    of_list = [
        "deb.example.org_docker%5fce_dists_trixie_InRelease",
        "deb.example.org_docker%5fce_dists_trixie_Release.gpg",
    ]
    of_others = [
        "deb.example.org_debian_dists_trixie_InRelease",
        "deb.example.org_docker%5fce_dists_trixie_Packages",
    ]
    for name in [*of_list, *of_others]:
        (tmp_path / "state" / name).touch()
    path = tmp_path / "docker.list"
    path.write_text(
        "# deb https://deb.example.org/debian trixie\ndeb [trusted=yes] https://a:b@deb.example.org/docker_ce/ trixie stable\n"
    )
    lists.forget(path)
    assert sorted(each.name for each in (tmp_path / "state").iterdir()) == of_others


def test_lists_without_nvidia_repository_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.sources"
    path.write_text(DEBIAN)
    before = path.stat()
    assert lists.disable([path, tmp_path / "missing"], tmp_path / "away", *TOOLKIT_LISTS) == []
    assert path.stat() == before


def test_lost_settings_of_a_merge_are_named() -> None:
    before = {"live-restore": True, "runtimes": {"other": {"path": "a"}}, "features": {"buildkit": True}}
    good = {
        **before,
        "runtimes": {**before["runtimes"], "nvidia": {}},
        "features": {"buildkit": True, "cdi": True},
    }
    assert toolkit.lost(before, good) == []
    assert toolkit.lost(before, {"runtimes": {"nvidia": {}}}) == [
        "live-restore",
        "features.buildkit",
        "runtimes.other",
    ]


@pytest.mark.parametrize(
    "before",
    [{}, {"live-restore": True}, {"runtimes": {"other": {}}}, {"features": {"cdi": False}}, {"runtimes": {}}],
)
def test_unmerge_restores_the_configuration(before: dict[str, Any]) -> None:
    merged = {
        **before,
        "runtimes": {**before.get("runtimes", {}), "nvidia": {"path": "n"}},
        "features": {**before.get("features", {}), "cdi": True},
    }
    assert toolkit.unmerge(merged, before) == before
    # What was edited since stays.
    assert toolkit.unmerge({**merged, "debug": True}, before) == {**before, "debug": True}


def probe(*more: str) -> dict[str, Any]:
    lines = ["pci 0000:01:00.0 0x10de 0x20b0 0x030200", "installed 550.163.01", "running 6.12.1", *more]
    return driver.status(lines, TABLE, "6.12.1", "/run/reboot-required", SIGNED)


NO_DRIVERS = (
    "cuda-compat-13-0", "nvidia-container-toolkit", "nvidia-cuda-toolkit", "nvidia-cuda-mps", "nvidia-docker2",
    "nvidia-detect", "nvidia-driver-local-repo-ubuntu2404-580.95.05",
)  # fmt: skip


def test_probe_of_a_healthy_host() -> None:
    result = probe(
        "loaded 550.163.01",
        "package ii nvidia-graphics-drivers libcuda1",
        "package ii bash bash",
        *(f"package ii nvidia-graphics-drivers {name}" for name in NO_DRIVERS),
        "package ii nvidia-driver-assistant nvidia-driver-assistant",
        "held libcuda1:amd64",
    )
    assert (result["mismatch"], result["nouveau"], result["secure_boot"], result["reboot_pending"]) == (
        False,
        False,
        False,
        [],
    )
    assert (result["packages"], result["held"], result["kernel_running"]) == (
        ["libcuda1"],
        ["libcuda1"],
        True,
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("loaded 535.1", "the loaded kernel module is 535.1, the installed driver 550.163.01"),
        ("nouveau loaded", "nouveau is loaded"),
    ],
)
def test_pending_reboot_says_why(line: str, words: str) -> None:
    [reason] = probe(line)["reboot_pending"]
    assert words in reason


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("reboot linux-image-amd64 ", "/run/reboot-required asks for it (linux-image-amd64)"),
        ("reboot", "/run/reboot-required asks for it"),
    ],
)
def test_reboot_request_of_distribution_is_not_pending(line: str, words: str) -> None:
    result = probe(line, "loaded 550.163.01")
    assert (result["reboot_pending"], result["reboot_wished"]) == ([], words)


@pytest.mark.parametrize(
    ("line", "kernels"),
    [
        ("newest 6.12.1", ["6.12.1"]),
        ("newest 6.12.9", ["6.12.1", "6.12.9"]),
        ("image linux-image-amd64", ["6.12.1"]),
    ],
)
def test_kernel_of_next_boot_is_included(line: str, kernels: list[str]) -> None:
    assert probe(line)["kernels"] == kernels


def test_secure_boot_follows_the_efi_variable() -> None:
    assert probe("secureboot 1")["secure_boot"]
    assert not probe("secureboot 0")["secure_boot"]


TWO_CARDS = ("pci 0000:02:00.0 0x10de 0x20b0 0x030200", "loaded 590.48.01")
DKMS = "package ii nvidia-graphics-drivers nvidia-kernel-dkms"


@pytest.mark.parametrize(
    ("lines", "serves", "answers", "unserved"),
    [
        (("served 0000:01:00.0", "served 0000:02:00.0"), True, False, []),
        (("served 0000:01:00.0", "listed 0"), False, False, ["0000:02:00.0"]),
        (("listed 2",), True, True, ["0000:01:00.0", "0000:02:00.0"]),
        (("listed 1",), False, False, ["0000:01:00.0", "0000:02:00.0"]),
        (("served 0000:01:00.0", "served 0000:02:00.0", "listed 2"), True, True, []),
    ],
)
def test_driver_serves_every_card(
    lines: tuple[str, ...], serves: bool, answers: bool, unserved: list[str]
) -> None:
    result = probe(*TWO_CARDS, *lines)
    assert (result["serves"], result["answers"], result["unserved"]) == (serves, answers, unserved)


@pytest.mark.parametrize(
    ("lines", "is_ours", "origin"),
    [
        ((DKMS, "brought nvidia-kernel-dkms"), True, "from the package nvidia-kernel-dkms"),
        ((DKMS,), False, "from the package nvidia-kernel-dkms"),
        # The role brought something else of the driver, not its module.
        (
            (DKMS, "package ii fabric-manager nvidia-fabricmanager", "brought nvidia-fabricmanager"),
            False,
            "from the package nvidia-kernel-dkms and 1 more",
        ),
        (
            ("package ii nvidia-kernel nvidia-kernel-6.1.0-25-amd64",),
            False,
            "from the package nvidia-kernel-6.1.0-25-amd64",
        ),
        (("brought nvidia-kernel-dkms",), False, "not installed by packages we know"),
        # Libraries alone are no driver.
        (("package ii nvidia-graphics-drivers libcuda1",), False, "not installed by packages we know"),
        (("runfile found",), False, "from NVIDIA's installer"),
        (("runfile found", "package ii nvidia-modprobe nvidia-modprobe"), False, "from NVIDIA's installer"),
    ],
)
def test_origin_of_the_driver(lines: tuple[str, ...], is_ours: bool, origin: str) -> None:
    result = probe(*lines)
    assert (result["ours"], result["origin"]) == (is_ours, origin)


@pytest.mark.parametrize(
    ("lines", "system"),
    [
        ((), ""),
        (("system DGX OS",), "DGX OS"),
        (("package ii lambda-stack lambda-stack-cuda",), "Lambda Stack"),
        (("package ii lambda lambdaisland",), ""),
    ],
)
def test_systems_with_a_driver_of_their_own_are_named(lines: tuple[str, ...], system: str) -> None:
    result = probe("loaded 580.159.04", "listed 1", *lines)
    assert result["system"] == system
    text = driver.kept(result, "gpu-1")
    by = f"{system}, " if system else ""
    assert text.startswith(
        f"the loaded driver 580.159.04 ({by}not installed by packages we know) serves the card and is left"
    )
    assert text.endswith("--limit gpu-1 -e nvidia_driver_replace=true (nvidia_driver_replace: true)")


def test_system_with_its_own_driver_stays_when_none_is_loaded() -> None:
    text = driver.kept(probe("system DGX OS"), "gpu-1")
    assert (
        "runs DGX OS, which brings its own driver, and has the driver 550.163.01, which does not serve the card"
        in text
    )


def test_holds_of_administrator_and_role_are_distinguished() -> None:
    result = probe(
        DKMS,
        "package ii nvidia-graphics-drivers libcuda1",
        *("held nvidia-kernel-dkms", "held libcuda1", "held bash", "holds libcuda1", "holds nvidia-smi"),
    )
    assert (result["held_by_others"], result["held_by_us"]) == (["nvidia-kernel-dkms"], ["libcuda1"])


@pytest.mark.parametrize(
    ("lines", "state", "is_ours", "expected"),
    [
        (["Inst a (1 x [all])", "Conf a (1 x [all])"], "present", False, ([], [], ["a"], False, False)),
        # Its own driver may move by an update; another only by consent.
        (["Inst d [1] (2 x [all])"], "latest", True, ([], ["d 1 by 2"], [], True, False)),
        (["Inst d [1] (2 x [all])"], "present", True, ([], ["d 1 by 2"], [], True, True)),
        (["Inst d [1] (2 x [all])"], "latest", False, ([], ["d 1 by 2"], [], True, True)),
        (["Remv d:i386 [1]", "Inst a (1 x [all])"], "latest", True, (["d"], [], ["a"], True, True)),
        (["Remv other [1] [d ]"], "present", False, (["other"], [], [], False, False)),
        (["unsolvable", ""], "present", False, ([], [], [], False, False)),
    ],
)
def test_change_is_read_from_the_simulation(
    lines: list[str], state: str, is_ours: bool, expected: tuple[Any, ...]
) -> None:
    result = {"packages": ["d"], "loaded": "590.1", "ours": is_ours}
    change = driver.change(lines, result, ["a"], state)
    assert tuple(change[key] for key in ("removed", "replaced", "added", "touches", "consent")) == expected


OLD_MODULE = "linux-modules-nvidia-580-server-open-6.8.0-60-generic"


def test_update_leaves_the_modules_of_older_kernels_behind() -> None:
    lines = [
        f"Remv {OLD_MODULE} [1]", "Inst d [1] (2 x [all])",
        "Inst linux-modules-nvidia-580-server-open-6.8.0-71-generic (2 x [all])",
    ]  # fmt: skip
    result = {"packages": ["d", OLD_MODULE], "loaded": "580.1", "ours": True}
    change = driver.change(lines, result, [], "latest", signed=SIGNED)
    assert (change["superseded"], change["touches"], change["consent"]) == ([OLD_MODULE], True, False)
    # Not without a module of a later kernel, not at another time, and not of another driver.
    assert driver.change(lines[:2], result, [], "latest", signed=SIGNED)["consent"]
    assert driver.change(lines, result, [], signed=SIGNED)["consent"]
    assert driver.change(lines, {**result, "ours": False}, [], "latest", signed=SIGNED)["consent"]
    # Nor where the distribution has no such modules.
    assert driver.change(lines, result, [], "latest", signed={})["consent"]


def test_driver_for_the_next_kernel_only_needs_a_reboot() -> None:
    lines = ["pci 0000:01:00.0 0x10de 0x20b0 0x030200", "newest 6.8.0-71-generic", "next 580.2", "loaded 580.1",
             "package ii linux-restricted-modules linux-modules-nvidia-580-server-open-generic",
             "brought linux-modules-nvidia-580-server-open-generic"]  # fmt: skip
    result = driver.status(lines, TABLE, "6.8.0-60-generic", "/run/reboot-required", SIGNED)
    assert result["kernels"] == ["6.8.0-71-generic"]
    assert result["reboot_pending"] == [
        "the driver 580.2 is installed for the kernel 6.8.0-71-generic, which the next boot takes, "
        "and not for 6.8.0-60-generic"
    ]


def test_exact_version_moves_the_driver_of_the_role() -> None:
    lines, result = ["Inst d [2] (1 x [all])"], {"packages": ["d"], "loaded": "590.1", "ours": True}
    assert not driver.change(lines, result, ["d"], "present", "590.44.01")["consent"]
    assert driver.change(lines, {**result, "ours": False}, ["d"], "present", "590.44.01")["consent"]


def test_packages_over_a_driver_without_packages_need_consent() -> None:
    result = {"packages": [], "loaded": "590.1", "ours": False}
    assert driver.change(["Inst a (1 x [all])"], result, ["a"])["consent"]
    assert not driver.change(["Inst linux-headers-1 (1 x)"], result, ["linux-headers-1"])["consent"]
    assert not driver.change(["Inst a (1 x [all])"], {**result, "loaded": ""}, ["a"])["consent"]


@pytest.mark.parametrize(
    ("images", "flavour", "expected"),
    [
        (["linux-image-6.8.0-60-generic", "linux-image-generic"], "", ["generic"]),
        (["linux-image-generic-hwe-24.04"], "", ["generic-hwe-24.04"]),
        (["linux-image-aws", "linux-image-generic"], "", ["aws", "generic"]),
        (["linux-image-azure"], "", ["azure"]),
        (["linux-image-gcp"], "", ["gcp"]),
        (["linux-image-oracle"], "", ["oracle"]),
        (["linux-image-nvidia"], "", ["nvidia"]),
        (["linux-image-nvidia-6.8"], "", ["nvidia-6.8"]),
        (["linux-image-lowlatency-hwe-22.04"], "", ["lowlatency-hwe-22.04"]),
        (["linux-image-aws-lts-22.04"], "", ["aws-lts-22.04"]),
        # Its kernel is the generic one, and there are no modules of its own name.
        (["linux-image-virtual"], "", ["generic"]),
        (["linux-image-virtual-hwe-24.04"], "", ["generic-hwe-24.04"]),
        (["linux-image-generic"], "nvidia", ["nvidia"]),
        # No kernel is to come.
        (["linux-image-6.8.0-60-generic"], "", []),
        ([], "", []),
    ],
)
def test_signed_modules_of_installed_and_later_kernels(
    images: list[str], flavour: str, expected: list[str]
) -> None:
    kernels = ["6.8.0-60-generic", "6.8.0-71-generic"]
    names = driver.signed_modules("linux-modules-nvidia-580-server-open", kernels, images, flavour)
    assert names == [f"linux-modules-nvidia-580-server-open-{name}" for name in [*kernels, *expected]]


@pytest.mark.parametrize(
    ("added", "flavour", "expected"),
    [
        (["linux-image-6.8.0-1019-aws", "linux-modules-6.8.0-1019-aws", "nvidia-utils-580-server"], "", []),
        (["linux-image-6.8.0-60-generic"], "", ["linux-image-6.8.0-60-generic"]),
        (["linux-image-unsigned-6.8.0-60-generic"], "", ["linux-image-unsigned-6.8.0-60-generic"]),
        (["linux-image-6.8.0-1019-azure-fde"], "", ["linux-image-6.8.0-1019-azure-fde"]),
        # An administrator asked for it.
        (["linux-image-6.8.0-60-generic"], "generic-hwe-22.04", []),
        (["linux-image-6.8.0-60-generic"], "nvidia", ["linux-image-6.8.0-60-generic"]),
        (["linux-image-6.8.0-1010-nvidia-64k"], "nvidia-64k", []),
        (["linux-image-aws", "linux-headers-6.8.0-60-generic"], "", []),
    ],
)
def test_kernel_of_another_flavour_is_found(added: list[str], flavour: str, expected: list[str]) -> None:
    installed = {"kernels": ["6.8.0-1018-aws"], "images": ["linux-image-6.8.0-1018-aws", "linux-image-aws"]}
    assert driver.foreign_kernels(added, installed, flavour) == expected


KERNEL_PACKAGES = ["linux-generic", "linux-headers-generic", "linux-image-generic"]


def test_signed_modules_are_held_with_kernel_packages() -> None:
    installed = [*KERNEL_PACKAGES, "linux-image-6.8.0-60-generic", "linux-firmware", "linux-base"]
    assert driver.kernel_packages(installed) == KERNEL_PACKAGES
    modules = "linux-modules-nvidia-580-server-generic"
    lines = [
        f"package ii {source} {name}"
        for source, name in (
            ("linux-restricted-modules", modules),
            ("nvidia-graphics-drivers-580", "nvidia-utils-580"),
            *(("linux-meta", name) for name in KERNEL_PACKAGES),
            ("linux-meta", "linux-image-generic"),
        )
    ]
    result = driver.status(lines, TABLE, "6.8.0-60-generic", "/run/reboot-required", SIGNED)
    assert driver.to_hold(result) == [modules, "nvidia-utils-580", *KERNEL_PACKAGES]
    assert driver.to_hold({**result, "held": [modules]}) == ["nvidia-utils-580", *KERNEL_PACKAGES]
    # A module that DKMS builds needs no kernel held.
    lines[0] = "package ii nvidia-graphics-drivers-580 nvidia-dkms-580"
    result = driver.status(lines, TABLE, "6.8.0-60-generic", "/run/reboot-required", SIGNED)
    assert driver.to_hold(result) == ["nvidia-dkms-580", "nvidia-utils-580"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://m.example.org/debian", ""),
        ("https://u:p%40w@m.example.org/debian", "machine m.example.org/debian login u password p@w"),
        ("http://u:pw@m.example.org:8080", "machine http://m.example.org:8080 login u password pw"),
        ("mirror+file:/etc/apt/mirrors/debian.list", ""),
    ],
)
def test_password_of_mirror_becomes_auth_conf_line(address: str, expected: str) -> None:
    assert common.apt_login(address) == expected
    assert "@" not in common.without_login(address)


def test_answers_of_a_probe_are_read_by_name() -> None:
    lines = ["free_mib 1024", "running", "holds docker.io runc ", "installed no package"]
    assert common.answers(lines) == {
        "free_mib": "1024",
        "running": "",
        "holds": "docker.io runc",
        "installed": "no package",
    }


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (("Debian", "12.11", "12"), "Debian 12"),
        (("Ubuntu", "24.04", "24"), "Ubuntu 24.04"),
        (("Fedora", "42", "42"), "Fedora 42"),
    ],
)
def test_release_is_one_name(facts: tuple[str, str, str], expected: str) -> None:
    names = ("distribution", "distribution_version", "distribution_major_version")
    assert common.release(dict(zip(names, facts, strict=True))) == expected


RELEASES = ["Debian 12", "Debian 13", "Ubuntu 22.04"]


@pytest.mark.parametrize(
    ("name", "version", "kernel", "words"),
    [
        ("Debian", "12.11", "6.1.0-25-amd64", ""),
        ("Ubuntu", "22.04", "5.15.0-1092-aws", ""),
        ("Fedora", "42", "6.14", "runs Fedora 42: a_role supports Debian 12 and 13, Ubuntu 22.04."),
        ("Ubuntu", "22.04", "6.6.87.2-microsoft-standard-WSL2", "runs in WSL"),
        ("Ubuntu", "22.04", "5.15.148-tegra", "is a Jetson (kernel 5.15.148-tegra)"),
    ],
)
def test_systems_on_which_no_role_runs_are_named(name: str, version: str, kernel: str, words: str) -> None:
    facts = {
        "distribution": name, "distribution_version": version, "kernel": kernel,
        "distribution_major_version": version.split(".")[0],
    }  # fmt: skip
    text = common.unsupported(facts, "a_role", RELEASES)
    assert words in text and bool(words) == bool(text)


TOOLKIT = [
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
]


def installed(version: str, holds: tuple[str, ...] = (), names: list[str] = TOOLKIT) -> list[str]:
    return [f"now {'hi' if name in holds else 'ii'} {name} {version}" for name in names]


@pytest.mark.parametrize(
    ("lines", "keep", "missing", "problem"),
    [
        ([], False, TOOLKIT, ""),
        ([*installed("1.19.0-1"), "works yes"], True, [], ""),
        ([*installed("1.17.8-1", (TOOLKIT[3],)), "works yes"], True, [], ""),
        ([*installed("1.17.8~rc.1-1"), "works yes"], False, TOOLKIT, ""),
        ([*installed("1.17.7-1"), "works yes"], False, TOOLKIT, ""),
        ([*installed("1.17.7-1", (TOOLKIT[3],)), "works yes"], False, TOOLKIT, "apt-mark unhold libnvidia-container1"),
        ([*installed("1.19.0-1"), "works no"], False, TOOLKIT, "is newer than 1.18.2-1"),
        ([*installed("1.19.0-1", names=TOOLKIT[1:]), "works yes"], False, TOOLKIT, "is newer than 1.18.2-1"),
        ([*installed("1.18.2-1"), "works yes"], True, [], ""),
        ([*installed("1.18.2-1"), "works yes", *(f"brought {name} 1.18.2-1" for name in TOOLKIT)], False, [], ""),
        # Of an earlier release, which wrote down only what was there before.
        ([*installed("1.18.2-1", tuple(TOOLKIT)), "works yes", "recorded"], False, [], ""),
        ([*installed("1.19.0-1", tuple(TOOLKIT)), "works yes", "recorded"], True, [], ""),
    ],
)  # fmt: skip
def test_toolkit_of_administrator_stays_or_is_refused(
    lines: list[str], keep: bool, missing: list[str], problem: str
) -> None:
    decision = toolkit.decision(lines, TOOLKIT, "1.18.2-1", "1.17.8")
    assert (decision["kept"], decision["missing"]) == (keep, missing)
    assert problem in decision["problem"] and bool(problem) == bool(decision["problem"])


def test_only_the_toolkit_of_the_role_is_downgraded_and_released() -> None:
    brought = [f"brought {name} 1.18.2-1" for name in TOOLKIT]
    holds = ["holding", *(f"holds {name}" for name in TOOLKIT[:3])]
    lines = [*installed("1.18.2-1", tuple(TOOLKIT[:3])), "works yes", *brought, *holds]
    decision = toolkit.decision(lines, TOOLKIT, "1.18.1-1", "1.17.8")
    assert (decision["downgrade"], decision["unhold"]) == (TOOLKIT, sorted(TOOLKIT[:3]))
    assert decision["problem"] == "" and decision["hold"] == TOOLKIT[3:]
    # One is held by an administrator.
    lines = [*installed("1.18.2-1", tuple(TOOLKIT)), "works yes", *brought, *holds]
    assert "libnvidia-container1" in toolkit.decision(lines, TOOLKIT, "1.18.1-1", "1.17.8")["problem"]


def status(**changes: Any) -> dict[str, Any]:
    return {
        "cards": cards(0x20B0), "loaded": "550.1", "installed": "550.1", "mismatch": False, "nouveau": False,
        "secure_boot": False, "kernel": "6.1", "kernel_running": True, "reboot_pending": [], "reboot_wished": "",
        "packages": ["nvidia-smi"], "held": ["nvidia-smi"], "ours": True, "serves": True,
        "answers": True, "packaged": True, "next": "", "origin": "from the package nvidia-smi", **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected", "name", "outcome", "words"),
    [
        ({}, 1, "driver", "ok", "loaded 550.1 equals installed"),
        ({"loaded": "535.1", "mismatch": True, "answers": False}, 1, "driver", "fail", "mismatch"),
        # The driver that is loaded works with its own libraries, whatever packages are beside it.
        (
            {"loaded": "580.1", "mismatch": True},
            1,
            "driver",
            "warn",
            "580.1 is loaded and serves every card; the next boot loads 550.1",
        ),
        ({"loaded": "", "serves": False}, 1, "driver", "fail", "not loaded"),
        ({"loaded": "", "serves": False, "secure_boot": True}, 1, "driver", "fail", "Secure Boot is on"),
        (
            {"installed": "", "loaded": "", "serves": False},
            1,
            "driver",
            "fail",
            "no NVIDIA module is installed",
        ),
        ({"installed": "", "serves": False}, 1, "driver", "fail", "no NVIDIA module is installed"),
        (
            {"installed": "", "next": "580.2", "answers": False},
            1,
            "driver",
            "fail",
            "580.2 is installed for the kernel of the next boot, not for 6.1",
        ),
        # NVIDIA's installer leaves a module on the disk, too.
        (
            {"packaged": False, "origin": "from NVIDIA's installer"},
            1,
            "driver",
            "ok",
            "from NVIDIA's installer: left",
        ),
        (
            {
                "installed": "",
                "packages": [],
                "packaged": False,
                "origin": "not installed by packages we know",
            },
            1,
            "driver",
            "ok",
            "550.1, not installed by packages we know: left as it is (to replace it: ansible-playbook site.yml",
        ),
        ({"nouveau": True}, 1, "nouveau", "fail", "holds the card"),
        ({"cards": []}, 0, "card", "fail", "a card is gone"),
        ({"cards": [], "loaded": "", "installed": ""}, 0, "card", "skip", "trains on its CPU"),
        ({}, 2, "card", "fail", "1 NVIDIA cards on the PCI bus, 2 expected"),
        ({"held": []}, 1, "hold", "warn", "not held"),
        ({"held": [], "ours": False}, 1, "driver", "ok", "loaded 550.1 equals installed"),
        ({"reboot_wished": "/run/reboot-required asks for it"}, 1, "reboot", "warn", "a reboot is pending"),
    ],
)
def test_each_state_of_the_driver_has_its_own_row(
    changes: dict[str, Any], expected: int, name: str, outcome: str, words: str
) -> None:
    rows = check.driver_rows(status(**changes), expected)
    [row] = [row for row in rows if row["name"] == name]
    assert row["status"] == outcome and words in row["message"]
    assert check.ready(rows) == (outcome != "fail")
    assert row["hint"] or outcome in ("ok", "skip")


def row(name: str, status: str, message: str) -> dict[str, Any]:
    return {"name": name, "status": status, "message": message, "hint": None}


def test_framework_that_was_not_run_is_not_proven() -> None:
    checks = [
        row("gpu-in-framework", "skip", "not tried: gpu_check is device on this host"),
        row("clock", "ok", "now"),
    ]
    rows = check.worker_rows({"answer": {"checks": checks}, "clock_offset_s": 0.0}, 60)
    assert [(one["name"], one["status"]) for one in rows] == [
        ("gpu-in-framework", "not proven"),
        ("clock", "ok"),
    ]


def test_clock_difference_fails_despite_the_host() -> None:
    checks = [row("clock", "ok", "now")]
    [one] = check.worker_rows({"answer": {"checks": checks}, "clock_offset_s": -3600.0}, 60)
    assert one["status"] == "fail" and "-3600 s off" in one["message"]


@pytest.mark.parametrize(("drained", "ready"), [(False, False), (True, True)])
def test_host_drained_by_the_play_is_ready(drained: bool, ready: bool) -> None:
    checks = [row("drain", "fail", "the host is taken out of service")]
    assert check.ready(check.worker_rows({"answer": {"checks": checks}}, 60, drained)) is ready


def test_missing_answer_of_worker_is_a_row() -> None:
    [row] = check.worker_rows({"failed": True, "msg": "python3: not found"}, 60)
    assert row["status"] == "fail" and "not found" in row["message"]


def test_graver_of_two_rows_stays() -> None:
    own = [row("card", "ok", "a"), row("driver", "ok", "ours")]
    workers = [row("driver", "fail", "theirs"), row("xid", "warn", "1"), row("xid", "warn", "2")]
    assert [one["message"] for one in check.merge(own, workers)] == ["a", "theirs", "1", "2"]
    workers[0]["status"] = "skip"
    assert [one["message"] for one in check.merge(own, workers)] == ["a", "ours", "1", "2"]


@pytest.mark.parametrize(
    ("path", "words"),
    [("nowhere/report.json", "there is no folder"), (".", "which is a folder"), ("report.json", "")],
)
def test_unwritable_report_is_refused(tmp_path: Path, path: str, words: str) -> None:
    message = check.unwritable(str(tmp_path / path))
    assert words in message if words else message == ""
