"""Row 17: a container does not get the machine's credentials from the metadata service of a cloud."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Callable, Iterator

import pytest
from hosts.fleet import role_variables
from hosts.machine import TestHost
from hosts.play import PlayResult, play

pytestmark = [pytest.mark.engine, pytest.mark.host]

PROGRAM = "/var/lib/train-classifier/bin/metadata-firewall"
RESULT = "/run/train-classifier/metadata"
UNIT = "train-classifier-firewall"
IPV4, IPV6 = "169.254.169.254", "fd00:ec2::254"
#: Other places where clouds give credentials: containers of Amazon, Tencent, Scaleway; Akamai.
OTHERS4 = ("169.254.170.2", "169.254.0.23", "169.254.42.42")
OTHERS6 = ("fd00:ec2::23", "fd00:42::42", "fd00:a9fe:a9fe::1")

#: A metadata service with credentials on port 80, and a DNS server on TCP and UDP port 53 of the same addresses.
CLOUD = textwrap.dedent("""
    import http.server, socket, socketserver, threading
    class Credentials(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"the-secret-of-the-machine")
    class Http(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6
    class Tcp(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6
        allow_reuse_address = True
    class Udp(socketserver.ThreadingUDPServer):
        address_family = socket.AF_INET6
    class TcpName(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"an-answer-of-the-name-server")
    class UdpName(socketserver.BaseRequestHandler):
        def handle(self):
            self.request[1].sendto(b"an-answer-of-the-name-server", self.client_address)
    for server in (Http(("::", 80), Credentials), Http(("::", 32526), Credentials), Tcp(("::", 53), TcpName),
                   Udp(("::", 53), UdpName)):
        threading.Thread(target=server.serve_forever).start()
""")
#: A network of its own behind a veth pair: an address of the host itself would not be forwarded.
#: The cloud answers from its main address: the others are never chosen (preferred_lft).
NETWORK = f"""
    mount -o remount,rw /proc/sys
    echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6
    echo 0 >/proc/sys/net/ipv6/conf/default/disable_ipv6
    echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
    ip netns add cloud
    ip link add cloud0 type veth peer name cloud1 netns cloud
    ip addr add 169.254.169.253/30 dev cloud0
    ip addr add fd00:ec2::1/64 dev cloud0 nodad
    ip link set cloud0 up
    ip -n cloud addr add {IPV4}/30 dev cloud1
    ip -n cloud addr add {IPV6}/64 dev cloud1 nodad
    ip -n cloud link set lo up
    ip -n cloud link set cloud1 up
    ip -n cloud route add default via fd00:ec2::1
    for address in {" ".join(OTHERS4)}; do ip -n cloud addr add $address/32 dev cloud1; ip route add $address dev cloud0; done
    for address in {" ".join(OTHERS6)}; do ip -n cloud addr add $address/128 dev cloud1 nodad preferred_lft 0; ip -6 route add $address dev cloud0; done
    systemd-run --quiet --unit test-cloud ip netns exec cloud python3 -u /root/cloud.py
"""
#: What a model would do; prints for each question what it got, or the name of the error.
ASK = textwrap.dedent("""
    import socket, sys
    for question in sys.argv[1:]:
        address, port, kind = question.split(",")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as connection:
            connection.settimeout(20)
            try:
                connection.connect((address, int(port)))
                connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
                print(question, connection.makefile("rb").read() if kind == "tcp" else connection.recv(100))
            except OSError as error:
                print(question, type(error).__name__, error)
""")


def until(holds: Callable[[], bool], event: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {event}"
        time.sleep(0.2)


def start_cloud(host: TestHost) -> None:
    """Start a cloud's metadata service beside the host; a reboot removes it."""
    host.write("/root/cloud.py", CLOUD)
    host.shell(NETWORK)
    # The engine of this release has no IPv6 on its default bridge, and restores no network with it before the host has IPv6.
    host.docker("network", "rm", "own-bridge", check=False)
    host.docker("network", "create", "--ipv6", "--subnet", "fd12::/64", "own-bridge")
    # All its ports are bound before the first answers.
    connect = ("timeout", "5", "bash", "-c", f": </dev/tcp/{IPV4}/53")
    until(lambda: host.exec(*connect, check=False).returncode == 0, "the cloud starts")


@pytest.fixture(scope="module")
def cloud_host(ssh_host: TestHost) -> Iterator[TestHost]:
    """The Debian 12 host that the role provisioned, in a cloud."""
    start_cloud(ssh_host)
    yield ssh_host
    ssh_host.docker("network", "rm", "own-bridge")
    ssh_host.shell("systemctl stop test-cloud.service; ip netns del cloud")


def ask(host: TestHost, image: str, *questions: str, network: str = "bridge") -> dict[str, str]:
    """Ask from one container; the answer to each question, which is an address, a port, and tcp or udp."""
    command = ("run", "--rm", "--network", network, image, "python3", "-c", ASK, *questions)
    answers = dict(line.split(" ", 1) for line in host.docker(*command).splitlines())
    assert set(answers) == set(questions)
    return answers


def assert_blocked(host: TestHost, image: str) -> None:
    """No container gets the credentials, on no network, and names are still resolved."""
    http4 = [f"{address},80,tcp" for address in (IPV4, *OTHERS4)]
    http6 = [f"{address},80,tcp" for address in (IPV6, *OTHERS6)]
    names4, names6 = [f"{IPV4},53,tcp", f"{IPV4},53,udp"], [f"{IPV6},53,udp"]
    answers = ask(host, image, *http4, f"{IPV4},32526,tcp", *names4)
    own_bridge = ask(host, image, http4[0], *http6, *names6, network="own-bridge")
    for question in (*http4, f"{IPV4},32526,tcp"):
        assert "ConnectionRefusedError" in answers[question], answers
    for question in (http4[0], *http6):
        assert "ConnectionRefusedError" in own_bridge[question], own_bridge
    assert all("an-answer" in answers[question] for question in names4), answers
    assert all("an-answer" in own_bridge[question] for question in names6), own_bridge


def add_rules(host: TestHost) -> PlayResult:
    """Run the part of the role that blocks the service."""
    return play(host, "training_host", tasks_from="firewall", ansible_facts={"service_mgr": "systemd"})


def checked(host: TestHost, user: str) -> tuple[str, str]:
    """Status and message of the check, as `doctor` gets them."""
    request = json.dumps({"verb": "check", "gpus": 0, "deep": True})
    answer = host.exec("python3", "-I", "/var/lib/train-classifier/worker", user=user, input=request).stdout
    row = next(row for row in json.loads(answer)["checks"] if row["name"] == "metadata")
    return row["status"], row["message"]


def test_17_no_container_reaches_the_credentials(cloud_host: TestHost, base_image: str) -> None:
    assert_blocked(cloud_host, base_image)
    # The host itself needs the service: its own traffic is not touched.
    assert "the-secret" in cloud_host.exec("python3", "-c", ASK, f"{IPV4},80,tcp").stdout
    for user in ("root", "trainer"):
        assert checked(cloud_host, user) == ("ok", "containers cannot reach the metadata service of a cloud")


def test_17_rules_return_after_an_engine_restart(cloud_host: TestHost, base_image: str) -> None:
    # The timer would hide a unit that the engine does not start. What it has begun is waited for by another start.
    cloud_host.shell(
        f"systemctl stop {UNIT}.timer; systemctl start {UNIT}; iptables -F DOCKER-USER; systemctl restart docker"
    )
    until(
        lambda: "TRAIN-CLASSIFIER" in cloud_host.shell("iptables -S DOCKER-USER"), "the unit adds the rules"
    )
    assert_blocked(cloud_host, base_image)
    cloud_host.shell(f"systemctl start {UNIT}.timer")


def test_17_rules_return_after_a_flush(cloud_host: TestHost, base_image: str) -> None:
    cloud_host.shell(f"systemctl stop {UNIT}.timer; systemctl start {UNIT}; iptables -F DOCKER-USER")
    status, message = checked(cloud_host, "root")
    assert status == "warn" and "the first rule of DOCKER-USER is not ours" in message
    # An accepting rule before ours would let everything through.
    cloud_host.shell(f"iptables -I DOCKER-USER -j ACCEPT; systemctl start {UNIT}.timer")
    until(lambda: checked(cloud_host, "root")[0] == "ok", "the timer adds the rules")
    assert_blocked(cloud_host, base_image)
    cloud_host.shell("iptables -D DOCKER-USER -j ACCEPT")


def test_17_rules_are_there_after_a_reboot(cloud_host: TestHost, base_image: str) -> None:
    cloud_host.reboot()
    start_cloud(cloud_host)
    until(lambda: cloud_host.exec("test", "-e", RESULT, check=False).returncode == 0, "the unit ran")
    assert_blocked(cloud_host, base_image)


def test_17_unchangeable_firewall_is_reported(cloud_host: TestHost, base_image: str) -> None:
    cloud_host.shell(f"systemctl stop {UNIT}.timer; mv /usr/sbin/iptables /usr/sbin/iptables.away")
    try:
        done = add_rules(cloud_host)
        assert "the firewall cannot be changed: metadata-firewall: iptables is not installed" in " ".join(
            done.output.split()
        )
        for user in ("root", "trainer"):
            status, message = checked(cloud_host, user)
            assert status == "warn" and "iptables is not installed" in message
    finally:
        cloud_host.shell(f"mv /usr/sbin/iptables.away /usr/sbin/iptables; {PROGRAM} block")


def test_17_allow_metadata_removes_the_rules(cloud_host: TestHost, base_image: str) -> None:
    settings = cloud_host.shell("cat /var/lib/train-classifier/host.json")
    play(cloud_host, "training_host", training_host_allow_metadata=True, **role_variables(base_image))
    try:
        question = f"{IPV4},80,tcp"
        assert "the-secret" in ask(cloud_host, base_image, question)[question]
        assert checked(cloud_host, "trainer")[0] == "ok"
        rules = cloud_host.shell(
            f"ls -d {PROGRAM} {RESULT} /etc/systemd/system/{UNIT}* /etc/systemd/system/*/{UNIT}* 2>/dev/null || true; "
            "iptables -S; ip6tables -S"
        )
        assert PROGRAM not in rules and UNIT not in rules and "TRAIN-CLASSIFIER" not in rules
    finally:
        cloud_host.write("/var/lib/train-classifier/host.json", settings, "0640")
        add_rules(cloud_host)
    assert_blocked(cloud_host, base_image)
