"""check finds what is wrong in a namespace: each fault made for real, and nothing in a good one."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from istio_iptables.kernel import modules
from tests.kernel.sandbox import CLI, PATH, command, forked, install, joined, run
from tests.namespaces import BACKENDS, enter_network, mount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.program import Result

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

FLAGS = ("-i", "*", "-b", "*", "-d", "15090,15021,15020")
PROXY = 1337


@pytest.fixture(autouse=True)
def _pod(box: None, tmp_path: Path) -> None:  # noqa: ARG001 - made in it
    """A pod's address and its resolv.conf."""
    command("ip", "address", "add", "10.0.0.1/32", "dev", "lo")
    (tmp_path / "resolv.conf").write_text("nameserver 10.96.0.10\n", encoding="ascii")
    mount(str(tmp_path / "resolv.conf"), "/etc/resolv.conf", bind=True)


@contextlib.contextmanager
def listening(
    *ports: int,
    uid: int = PROXY,
    address: str = "0.0.0.0",  # noqa: S104 - in the test's namespace
) -> Iterator[None]:
    """Sockets of this user that take connections."""
    with contextlib.ExitStack() as stack:
        os.seteuid(uid)
        try:
            for port in ports:
                there = stack.enter_context(socket.socket())
                there.bind((address, port))
                there.listen()
                there.set_inheritable(True)
        finally:
            os.seteuid(0)
        yield


def check(*arguments: str) -> tuple[int, list[str], Result]:
    """The exit status, the findings, and all that was said."""
    done = run("check", "--live", *FLAGS, *arguments)
    *findings, _ = done.out.splitlines()
    return done.status, findings, done


def kinds(*arguments: str) -> dict[str, dict[str, str]]:
    """The findings by their kind."""
    done = run("check", "--live", *FLAGS, *arguments, "--json")
    return {each["kind"]: each for each in json.loads(done.out)["findings"]}


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_wrong_with_a_good_pod(backend: str) -> None:
    """Status 0, and that DNS is not captured, which is as it was asked for."""
    install(backend, *FLAGS)
    with listening(15001, 15006):
        status, findings, done = check()
    assert (status, done.err) == (0, "")
    assert [line.split(":")[0] for line in findings] == ["info"]
    assert done.out.endswith(f"this namespace ({backend}): nothing is wrong\n")


def test_rules_that_are_not_there() -> None:
    """None at all is one finding; a lost one and a foreign one before ours are one each."""
    status, findings, _ = check()
    assert status == 1
    assert [line.split(";")[0] for line in findings] == [
        "error: no rules of ours are in the live rules (legacy): nothing is captured"
    ]
    assert run("check").out.endswith("this namespace (legacy): 1 thing is wrong\n")
    install("legacy", *FLAGS)
    command("iptables-legacy", "-t", "nat", "-D", "ISTIO_INBOUND", "2")
    command("iptables-legacy", "-t", "nat", "-I", "OUTPUT", "-p", "tcp", "-j", "ACCEPT")
    with listening(15001, 15006):
        found = kinds()
    assert {*found} == {"missing-rule", "foreign-rule", "dns"}
    assert found["missing-rule"]["severity"] == "error"
    assert "--dport 15090 -j RETURN" in found["missing-rule"]["evidence"]
    assert "--reconcile" in found["missing-rule"]["remedy"]
    assert found["foreign-rule"]["severity"] == "warning"


def test_rules_in_both_backends() -> None:
    """Those in the other one take effect as well."""
    install("legacy", *FLAGS)
    command("iptables-nft", "-t", "nat", "-N", "ISTIO_REDIRECT")
    command("iptables-nft", "-t", "nat", "-A", "ISTIO_REDIRECT", "-j", "RETURN")
    assert "rules of ours in the nft backend" in kinds()["extra"]["evidence"]


def test_nobody_listens() -> None:
    """Each port that captured traffic is sent to, by what is to listen there."""
    install("legacy", *FLAGS, "--redirect-dns")
    _, findings, _ = check("--redirect-dns")
    said = [line for line in findings if "nothing listens" in line]
    assert sorted(line.split(" on ")[1].split(",")[0] for line in said) == [
        "tcp port 15001 (IPv4)",
        "tcp port 15006 (IPv4)",
        "tcp port 15053 (IPv4)",
        "udp port 15053 (IPv4)",
    ]
    assert all(("the agent runs" in line) is ("15053" in line) for line in said)


def test_the_loopback_interface_is_down() -> None:
    """Whatever is redirected goes over it."""
    install("legacy", *FLAGS)
    with listening(15001, 15006):
        assert "loopback" not in kinds()
        command("ip", "link", "set", "lo", "down")
        found = kinds()["loopback"]
    assert (found["severity"], "lo is down" in found["evidence"]) == ("error", True)


def test_envoy_is_stopped() -> None:
    """The kernel makes connections for it, and nothing answers."""
    install("legacy", *FLAGS)
    with listening(15001, 15006):
        envoy = subprocess.Popen(["sleep", "1000"], close_fds=False, user=PROXY)
    try:
        assert "stopped" not in kinds()
        envoy.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, envoy.pid, os.WSTOPPED | os.WNOWAIT)
        found = kinds()["stopped"]
        assert f"sleep (process {envoy.pid})" in found["evidence"]
        assert f"kill -CONT {envoy.pid}" in found["remedy"]
    finally:
        envoy.kill()
        envoy.wait()


def test_somebody_else_listens() -> None:
    """Whose own connections the rules would capture again."""
    install("legacy", *FLAGS)
    with listening(15001, 15006, uid=1000):
        found = kinds()["foreign-listener"]
    assert found["severity"] == "error"
    assert "user 1000 listens on tcp port 1500" in found["evidence"]
    assert "user 1337" in found["evidence"]


def test_a_listener_at_an_address_that_is_not_come_to() -> None:
    """Inbound connections come to the pod's address, outbound ones to loopback."""
    install("legacy", *FLAGS)
    for address, port, where in (("127.0.0.1", 15006, "the pod"), ("10.0.0.1", 15001, "loopback")):
        with listening(15001, 15006, address=address):
            found = kinds()["no-listener"]
        assert f"tcp port {port} (IPv4) is listened on at {address} only" in found["evidence"]
        assert f"comes to {where}'s address" in found["evidence"]


def test_native_rules_in_a_pod_without_ipv6() -> None:
    """They name no family, and Envoy listens for IPv4 alone: nothing is wrong."""
    flags = ("--native-nftables", "--ip-family", "ipv4")
    assert run(*FLAGS, *flags).status == 0
    with listening(15001, 15006):
        assert run("check").status == 0
        assert check(*flags)[0] == 0
    lines = [line for line in check(*flags)[1] if "nothing listens" in line]
    assert [line.split(" on ")[1].split(",")[0] for line in lines] == [
        "tcp port 15001 (IPv4)",
        "tcp port 15006 (IPv4)",
    ]


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        (("OUTPUT", "-p", "tcp"), "what an application sends"),
        (("INPUT", "-p", "tcp", "--dport", "15006"), "what arrives at the pod"),
    ],
)
def test_what_is_captured_and_then_dropped(rule: tuple[str, ...], what: str) -> None:
    """A foreign rule behind ours; one that meets nothing of ours is no finding."""
    install("legacy", *FLAGS)
    command("iptables-legacy", "-A", "OUTPUT", "-p", "tcp", "--dport", "25", "-j", "DROP")
    with listening(15001, 15006):
        assert check()[0] == 0
        command("iptables-legacy", "-I", *rule, "-j", "DROP")
        found = kinds()["loss"]
    assert found["severity"] == "warning"
    assert (
        f"{what} is captured, and dropped on its way to Envoy; decided by filter {rule[0]} 1"
        in found["evidence"]
    )


NATIVE = ("--native-nftables", "--nft-like-iptables", "--ip-family", "ipv4")


def _nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def _findings(*arguments: str) -> list[tuple[str, str, str]]:
    """Kind, severity and evidence of all that is to be mended."""
    done = run("check", "--live", "-i", "*", "-b", "*", *arguments, "--json")
    document = json.loads(done.out)
    found = [(each["kind"], each["severity"], each["evidence"]) for each in document["findings"]]
    assert (done.status, document["ok"]) == ((1, False) if found[0][1] != "info" else (0, True))
    return [each for each in found if each[1] != "info"]


def test_a_rule_of_iptables_behind_native_ones() -> None:
    """Packets go through both."""
    assert run("-i", "*", "-b", "*", *NATIVE).status == 0
    ports = ("-p", "tcp", "-m", "multiport", "--dports", "15001,15006")
    with listening(15001, 15006):
        assert _findings(*NATIVE) == []
        command("iptables-legacy", "-A", "INPUT", *ports, "-j", "DROP")
        found = _findings(*NATIVE)
    assert [each[:2] for each in found] == [("loss", "warning")] * 2
    assert all("is captured, and dropped on its way to Envoy" in each[2] for each in found)
    assert all("decided by filter INPUT 1" in each[2] for each in found)


@pytest.mark.parametrize(
    ("chain", "kind", "says"),
    [
        (
            "type filter hook input priority 0; tcp dport { 15001, 15006 } drop;",
            "loss",
            "decided by inet x c 1 (tcp dport { 15001, 15006 } drop)",
        ),
        ("type filter hook output priority -150; tcp dport 80 drop;", "foreign-rule", "inet x c"),
        (
            "type nat hook output priority -120; tcp dport 80 redirect to :9999;",
            "foreign-rule",
            "foreign: inet x c rule 1: tcp dport 80 redirect to :9999",
        ),
        (
            "type filter hook prerouting priority -400; tcp dport 8080 notrack;",
            "foreign-rule",
            "foreign: inet x c rule 1: tcp dport 8080 notrack",
        ),
        ("type filter hook output priority -150; tcp dport vmap @m;", "foreign-rule", "vmap @m"),
        (
            "type nat hook output priority -150; dnat ip to ip daddr map { 10.9.0.9 : 10.9.0.1 };",
            "foreign-rule",
            "dnat ip to ip daddr map { 10.9.0.9 : 10.9.0.1 }",
        ),
    ],
)
@pytest.mark.parametrize("ours", [("--ip-family", "ipv4"), NATIVE])
def test_native_rules_of_others(ours: tuple[str, ...], chain: str, kind: str, says: str) -> None:
    """What they do to captured traffic is told beside rules of either kind, as the rule that does it."""
    assert run("-i", "*", "-b", "*", *ours).status == 0
    named = "map m { type inet_service : verdict; elements = { 80 : drop, 81 : accept }; }"
    with listening(15001, 15006):
        _nft("table inet x { chain c { type nat hook postrouting priority 100; masquerade; }; }")
        assert _findings(*ours) == []
        _nft(f"delete table inet x; table inet x {{ {named}; chain c {{ {chain} }}; }}")
        found = _findings(*ours)
        differs = run("diff", "-i", "*", "-b", "*", *ours)
    assert {each[:2] for each in found} == {(kind, "warning")}
    assert says in found[0][2]
    assert differs.status == (kind == "foreign-rule")


def test_native_chains_that_can_not_be_listed(tmp_path: Path) -> None:
    """Where captured traffic comes to them, that is a warning: nobody knows what they do."""
    install("legacy", *FLAGS)
    _nft("table inet x { chain c { type nat hook postrouting priority 100; masquerade; }; }")
    (tmp_path / "nft").symlink_to("/bin/false")
    path = f"{tmp_path}:{PATH['PATH']}"

    def severity() -> str:
        words = (CLI, "check", "--live", *FLAGS, "--json")
        done = subprocess.run(words, capture_output=True, check=False, env={**PATH, "PATH": path})
        found = json.loads(done.stdout)["findings"]
        return str(next(each for each in found if each["kind"] == "unseen-chains")["severity"])

    with listening(15001, 15006):
        assert severity() == "info"
        _nft("table inet x { chain d { type filter hook input priority 0; drop; }; }")
        assert severity() == "warning"


@pytest.mark.parametrize("ours", [("--ip-family", "ipv4"), NATIVE])
def test_nat_of_another_kind(ours: tuple[str, ...]) -> None:
    """Its redirect may come first: which of them the kernel asks first is not known."""
    assert run("-i", "*", "-b", "*", *ours).status == 0
    rule = ("OUTPUT", "-p", "tcp", "--dport", "80", "-j", "REDIRECT", "--to-ports", "9999")
    with listening(15001, 15006):
        command("iptables-nft", "-t", "nat", "-A", *rule)
        found = _findings(*ours, *([] if ours == NATIVE else ["--force-iptables-binary", "legacy"]))
    assert ("foreign-rule", "warning") in [each[:2] for each in found]
    assert any("IPv4 nat OUTPUT rule 1" in each[2] for each in found)


def test_a_rule_of_the_other_backend() -> None:
    """The kernel asks it as well; one that lets pass is no finding."""
    ours = ("--ip-family", "ipv4", "--force-iptables-binary", "legacy")
    assert run("-i", "*", "-b", "*", *ours).status == 0
    with listening(15001, 15006):
        command("iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
        assert _findings(*ours) == []
        command("iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "15001", "-j", "DROP")
        (found,) = _findings(*ours)
    assert found[:2] == ("loss", "warning")
    assert "decided by nft filter INPUT 2" in found[2]


def test_a_rule_that_may_drop() -> None:
    """A condition that is not known is no reason to call it good."""
    ours = ("--ip-family", "ipv4", "--force-iptables-binary", "nft")
    assert run("-i", "*", "-b", "*", *ours).status == 0
    with listening(15001, 15006):
        assert _findings(*ours) == []
        hook = "type filter hook input priority 0"
        _nft(f"table ip filter {{ chain INPUT {{ {hook}; tcp dport {{ 15001, 15006 }} drop; }}; }}")
        found = _findings(*ours)
        command("iptables-nft", "-F", "INPUT")
        rule = ("OUTPUT", "-p", "tcp", "-m", "string", "--string", "x", "--algo", "bm")
        command("iptables-nft", "-A", *rule, "-j", "DROP")
        found += _findings(*ours)
    assert [each[:2] for each in found] == [("loss", "warning")] * 3
    assert all("may be dropped on its way to Envoy" in each[2] for each in found)


def test_what_install_would_refuse_is_not_said_to_be_mended_by_it() -> None:
    """Others' things in a native table of ours have to go elsewhere."""
    assert run("-i", "*", "-b", "*", *NATIVE).status == 0
    _nft(
        "table inet istio-proxy-nat { set s { type inet_service; };"
        " chain zz { type nat hook output priority -110; tcp dport 80 redirect to :9999; }; }"
    )
    document = json.loads(run("check", "--json").out)
    remedies = [each["remedy"] for each in document["findings"] if each["kind"].startswith("extra")]
    assert len(remedies) == 3
    assert all("move it to a table of its own" in each for each in remedies)
    assert "holds what is not ours" in run("-i", "*", "-b", "*", *NATIVE, "--reconcile").err


def test_rules_that_capture_nothing() -> None:
    """A warning unless the flags say so: a lost rule can make it look as if it was meant."""
    install("legacy", *FLAGS)
    with listening(15001, 15006):
        assert "nothing-captured" not in alone()[1]
        for family in ("iptables-legacy", "ip6tables-legacy"):
            saved = command(f"{family}-save", "-t", "nat")
            if "-A ISTIO_OUTPUT -j ISTIO_REDIRECT" in saved:
                command(family, "-t", "nat", "-D", "ISTIO_OUTPUT", "-j", "ISTIO_REDIRECT")
        status, found, _ = alone()
        assert (status, set(found)) == (1, {"nothing-captured", "dns"})
        assert found["nothing-captured"][0].startswith("no outbound TCP is captured")
        assert run("--reconcile").status == 0
        found = alone()[1]
        assert [each.split(":")[0] for each in found["nothing-captured"]] == [
            "no outbound TCP is captured",
            "no inbound TCP is captured",
        ]
        assert run("-b", "*", "--reconcile").status == 0
        done = run("check", "--live", "-b", "*")
    assert done.status == 0
    assert "info: no outbound TCP is captured" in done.out


@pytest.mark.parametrize("asked", [(), ("--live", *FLAGS, "--ip-family", "ipv4")])
def test_the_advice_is_a_command_line_that_mends_it(asked: tuple[str, ...]) -> None:
    """One that is taken literally; a loop that comes of a missing rule has the same."""
    install("legacy", *FLAGS, "--ip-family", "ipv4")
    command("iptables-legacy", "-t", "nat", "-D", "ISTIO_OUTPUT", "4")
    where = ("--network-namespace", "/proc/self/ns/net")
    with listening(15001, 15006):
        document = json.loads(run("check", *asked, *where, "--json").out)
        remedies = {each["kind"]: each["remedy"] for each in document["findings"]}
        line = remedies["missing-rule"].partition(": ")[2]
        assert line.endswith(" --network-namespace /proc/self/ns/net --reconcile")
        assert remedies["loop"].endswith(line)
        program, *words = shlex.split(line)
        assert program == "istio-iptables"
        assert run(*words).status == 0
        assert run("check", "--live", *FLAGS, "--ip-family", "ipv4").status == 0


def test_the_advice_has_what_a_manifest_says(tmp_path: Path) -> None:
    """What injection gives every pod is part of it; what a file is compared with is not."""
    pod = tmp_path / "pod.yaml"
    excluded = 'traffic.sidecar.istio.io/excludeOutboundPorts: "9000"'
    pod.write_text(
        f"{{apiVersion: v1, kind: Pod, metadata: {{name: a, annotations: {{{excluded}}}}},"
        " spec: {containers: [{name: a, image: x}]}}",
        encoding="ascii",
    )
    install("legacy", *FLAGS)
    document = json.loads(run("check", "--live", "--pod", str(pod), "--json").out)
    remedy = next(each for each in document["findings"] if "9000" in each["evidence"])["remedy"]
    words = shlex.split(remedy.partition(": istio-iptables ")[2])
    assert run(*words).status == 0
    assert run("check", "--live", "--pod", str(pod), "--json").out.count('"missing-rule"') == 0
    saved = tmp_path / "saved"
    saved.write_text(command("iptables-legacy-save"), encoding="ascii")
    done = run("check", "--rules", str(saved), "-i", "*", "-b", "*", "-d", "99")
    assert "install again: istio-iptables -i '*' -b '*' -d 99 --reconcile\n" in done.out


def test_a_loop_of_the_settings() -> None:
    """Where the settings make it, no rule is missing, and other settings mend it."""
    loop = ("-i", "*", "-b", "*", "--ip-family", "ipv4")
    environment = {"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.2/32"}
    done = run("check", *loop, "--json", environment=environment)
    found = {each["kind"]: each for each in json.loads(done.out)["findings"]}
    assert found["loop"]["remedy"].startswith("the settings themselves lead there")


def test_tproxys_envoy_is_known_by_its_group() -> None:
    """It runs as user 0 with the proxy's group."""
    install("legacy", *FLAGS, "-m", "TPROXY")
    with listening(15001, 15006, uid=0):
        assert "foreign-listener" in kinds("-m", "TPROXY")
        words = ("setpriv", "--regid", str(PROXY), "--clear-groups", "sleep", "60")
        with subprocess.Popen(words) as envoy:
            _wait(lambda: "foreign-listener" not in kinds("-m", "TPROXY"))
            envoy.kill()


def _wait(holds: object) -> None:
    """Until it is so; another process needs a moment."""
    for _ in range(100):
        if holds():  # type: ignore[operator]  # a function
            return
        time.sleep(0.05)
    pytest.fail("it did not come to be so")


def test_an_application_as_the_proxys_user() -> None:
    """Nothing that it sends is captured."""
    install("legacy", *FLAGS)
    words = ("setpriv", "--reuid", str(PROXY), "--regid", "5", "--clear-groups", "sleep", "60")
    with subprocess.Popen(words) as application:
        _wait(lambda: "application-as-proxy" in kinds())
        found = kinds()["application-as-proxy"]
        application.kill()
    assert f"sleep (process {application.pid})" in found["evidence"]
    assert "user 1337 and group 5" in found["evidence"]


def test_a_proxy_of_another_name() -> None:
    """Who takes what is captured is the proxy, whatever its program is called."""
    install("legacy", *FLAGS)
    # An open socket is inherited, so that this test's process need not be the proxy.
    with listening(15001, 15006), contextlib.ExitStack() as stack:
        words = ("setpriv", "--reuid", str(PROXY), "--regid", str(PROXY), "--clear-groups")
        proxy = stack.enter_context(subprocess.Popen((*words, "sleep", "60"), close_fds=False))
        stack.callback(proxy.kill)
        _wait(lambda: f"Uid:\t{PROXY}" in Path(f"/proc/{proxy.pid}/status").read_text())
        assert "application-as-proxy" not in kinds()


def test_ipv6_that_escapes() -> None:
    """An address of a family without rules."""
    install("legacy", *FLAGS, "--ip-family", "ipv4")
    command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    command("ip", "address", "add", "fd00::1/64", "dev", "eth0", "nodad")
    command("ip", "link", "set", "eth0", "up")
    assert "fd00::1" in kinds("--ip-family", "ipv4")["ipv6"]["evidence"]


def test_dns_servers_that_are_not_captured(tmp_path: Path) -> None:
    """One that resolv.conf names by now, and one that an application asks."""
    (tmp_path / "then").write_text("nameserver 10.96.0.9\n", encoding="ascii")
    flags = ("--redirect-dns", "--resolv-conf", str(tmp_path / "then"))
    install("legacy", *FLAGS, *flags)
    assert "resolv.conf names 10.96.0.10" in kinds(*flags)["dns-server"]["evidence"]
    (tmp_path / "now").write_text("nameserver 10.96.0.9\n", encoding="ascii")
    mount(str(tmp_path / "now"), "/etc/resolv.conf", bind=True)
    assert "dns-server" not in kinds(*flags)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        # Over UDP that sends nothing; the loopback address is the pod's own.
        command("ip", "route", "add", "8.8.8.8/32", "dev", "lo")
        query.connect(("8.8.8.8", 53))
        assert "asks the DNS server 8.8.8.8" in kinds(*flags)["dns-server"]["evidence"]


def test_dns_servers_of_another_process(tmp_path: Path) -> None:
    """The resolv.conf of a process whose namespace is asked about is its own."""
    (tmp_path / "own").write_text("nameserver 10.96.0.77\n", encoding="ascii")
    script = "mount --bind $0 /etc/resolv.conf && ip link set lo up && echo && exec sleep 60"
    words = ("unshare", "-n", "-m", "sh", "-c", script, str(tmp_path / "own"))
    with subprocess.Popen(words, stdout=subprocess.PIPE) as pod:
        assert pod.stdout
        assert pod.stdout.readline()
        namespace = f"/proc/{pod.pid}/ns/net"
        flags = ("--redirect-dns", "--ip-family", "ipv4", "--network-namespace", namespace)
        done = run(*FLAGS, *flags)
        found = kinds(*flags)
        pod.kill()
    assert done.status == 0
    assert "no-listener" in found
    assert "dns-server" not in found


@pytest.fixture
def _server(box: None) -> None:  # noqa: ARG001 - made in it
    """Another machine, 10.1.0.2, at the other end of eth0."""
    command("ip", "netns", "add", "server")
    command("ip", "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", "server")
    command("ip", "address", "add", "10.1.0.1/24", "dev", "eth0")
    command("ip", "link", "set", "eth0", "up")
    command("ip", "-n", "server", "address", "add", "10.1.0.2/24", "dev", "eth0")
    command("ip", "-n", "server", "link", "set", "eth0", "up")


def _in_server(port: int, *, connects: bool) -> int:
    """A process of the other machine that takes a connection, or makes one, and keeps it."""

    def work() -> int:
        enter_network("/run/netns/server")
        if connects:
            there = socket.create_connection(("10.1.0.1", port), 10)
        else:
            with socket.socket() as door:
                door.bind(("10.1.0.2", port))
                door.listen()
                there, _ = door.accept()
        with there:
            time.sleep(60)
        return 0

    return forked(work)


@pytest.mark.parametrize("backend", ["legacy", "native"])
@pytest.mark.usefixtures("_server")
def test_connections_from_before_the_rules(backend: str) -> None:
    """Both ways; those that were made with the rules in place, by way of Envoy, are none."""
    server = _in_server(9000, connects=False)
    with socket.socket() as door, contextlib.ExitStack() as stack:
        door.bind(("10.1.0.1", 8080))
        door.listen()
        client = _in_server(8080, connects=True)
        stack.enter_context(door.accept()[0])
        outgoing = stack.enter_context(socket.socket())
        _wait(lambda: outgoing.connect_ex(("10.1.0.2", 9000)) in {0, 106})
        install(backend, *FLAGS)
        natively = ("--native-nftables",) if backend == "native" else ()
        done = run("check", "--live", *FLAGS, *natively, "--json")
        lines = [
            each["evidence"]
            for each in json.loads(done.out)["findings"]
            if each["kind"] == "past-envoy"
        ]
        assert ["outbound" in line for line in lines] == [True, False]
        assert "to 10.1.0.2:9000 of user 0" in lines[0]
        assert "10.1.0.1:8080 to 10.1.0.2:" in lines[1]
        # What the rules let pass is meant to.
        excluded = ("-i", "*", "-b", "*", "-d", "8080", "-o", "9000")
        assert install(backend, *excluded, "--reconcile").status == 0
        assert "past-envoy" not in kinds(*excluded, *natively)
    for each in (server, client):
        os.kill(each, signal.SIGKILL)
        joined(each)


@pytest.mark.usefixtures("_server")
def test_a_connection_to_a_server_of_both_families() -> None:
    """One that listens on :: takes IPv4 too, and its connections are inbound ones."""
    excluded = ("-i", "*", "-b", "*", "-d", "8081")
    install("legacy", *excluded)
    with socket.create_server(("::", 8081), family=socket.AF_INET6, dualstack_ipv6=True) as door:
        client = _in_server(8081, connects=True)
        with door.accept()[0]:
            assert "past-envoy" not in kinds(*excluded)
            install("legacy", *FLAGS, "--reconcile")
            assert "inbound" in kinds()["past-envoy"]["evidence"]
    os.kill(client, signal.SIGKILL)
    joined(client)


@pytest.mark.usefixtures("_server")
def test_a_connection_by_way_of_envoy_is_captured() -> None:
    """Its other end is here, at Envoy's port."""
    install("legacy", *FLAGS)
    with socket.socket() as envoy, socket.socket() as application:
        envoy.bind(("127.0.0.1", 15001))
        envoy.listen()
        application.connect(("10.1.0.2", 9000))
        accepted, _ = envoy.accept()
        with accepted:
            assert "past-envoy" not in kinds()


def test_a_full_connection_table(tmp_path: Path) -> None:
    """From nine tenths on; the numbers are read where the kernel has them."""
    install("legacy", *FLAGS)
    for count, severity in ((950, "warning"), (1000, "error")):
        for name, number in (("count", count), ("max", 1000)):
            (tmp_path / name).write_text(f"{number}\n", encoding="ascii")
            path = f"/proc/sys/net/netfilter/nf_conntrack_{name}"
            mount(str(tmp_path / name), path, bind=True)
        assert kinds()["connection-table"]["severity"] == severity


def test_what_can_not_be_read_is_said(tmp_path: Path) -> None:
    """And is not taken for good: status 2 where nothing else is wrong."""
    install("legacy", *FLAGS)
    (tmp_path / "count").touch()
    mount(str(tmp_path / "count"), "/proc/sys/net/netfilter/nf_conntrack_count", bind=True)
    with listening(15001, 15006):
        status, _, done = check()
    assert status == 2
    assert done.warnings == [
        "not checked, since it can't be read: the connection table (/proc/sys/net/netfilter)"
    ]


def test_a_node() -> None:
    """Where the rules would capture a whole machine."""
    command("iptables-legacy", "-N", "KUBE-SERVICES")
    assert "chain KUBE-SERVICES of kube-proxy" in kinds()["node"]["evidence"]


def test_istios_detection_would_install_twice() -> None:
    """Ours are in nft, and somebody has looked into the legacy tables."""
    install("nft", *FLAGS)
    assert "detection" not in kinds()
    command("iptables-legacy-save", "-t", "nat")
    assert "a second time" in kinds()["detection"]["evidence"]


def test_extensions_that_the_kernel_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither registered nor among the module files; where those can't be seen, it is unknown."""
    monkeypatch.setattr(modules, "_NETWORK", str(tmp_path))
    monkeypatch.setattr(modules, "_MODULES", str(tmp_path))
    done = check()[2]
    assert done.warnings == [
        "not checked, since it can't be read: the kernel's modules (/lib/modules)"
    ]
    release = tmp_path / os.uname().release
    release.mkdir()
    (release / "modules.builtin").write_text("kernel/net/netfilter/xt_tcpudp.ko\n", "ascii")
    (release / "modules.dep").touch()
    assert kinds()["kernel"]["evidence"] == (
        "the kernel has no match owner (xt_owner), which the rules need"
    )


def test_watch_tells_what_changes() -> None:
    """A finding that comes is a line; Ctrl-C ends it with the status of the last look."""
    install("legacy", *FLAGS)
    words = (CLI, "check", "--live", *FLAGS, "--watch", "--interval", "0.1")
    with (
        listening(15001, 15006),
        subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PATH
        ) as watching,
    ):
        assert watching.stdout is not None
        while "nothing is wrong" not in watching.stdout.readline():
            pass
        command("iptables-legacy", "-t", "nat", "-D", "ISTIO_INBOUND", "2")
        assert " new: error: missing: IPv4 nat ISTIO_INBOUND rule 2" in watching.stdout.readline()
        command(
            "iptables-legacy", "-t", "nat", "-I", "ISTIO_INBOUND", "2",
            "-p", "tcp", "--dport", "15090", "-j", "RETURN",
        )  # fmt: skip
        assert " gone: error: missing: IPv4 nat ISTIO_INBOUND rule 2" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=30)
    assert (watching.returncode, out, err) == (0, "", "")


def test_watch_ends_with_its_reader() -> None:
    """Also where nothing changes, so that nothing is written."""
    install("legacy", *FLAGS)
    words = (CLI, "check", "--live", *FLAGS, "--watch")
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PATH
    ) as watching:
        assert watching.stdout is not None
        while "wrong" not in watching.stdout.readline():
            pass
        watching.stdout.close()
        assert watching.wait(timeout=30) == 2
        assert watching.stderr is not None
        assert not watching.stderr.read()


def test_rules_of_a_file(tmp_path: Path) -> None:
    """Without a machine around them there are the rules alone."""
    saved = tmp_path / "saved"
    install("legacy", *FLAGS)
    saved.write_text(command("iptables-legacy-save"), encoding="ascii")
    done = run("check", "--rules", str(saved), *FLAGS)
    assert (done.status, done.out) == (0, f"{saved}: nothing is wrong\n")
    saved.write_text(
        saved.read_text().replace("-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n", "")
    )
    done = run("check", "--rules", str(saved), *FLAGS)
    assert done.status == 1
    assert done.out.startswith("error: missing: IPv4 nat ISTIO_OUTPUT rule 4: ")
    assert "would be sent back" in done.out


def alone(*arguments: str) -> tuple[int, dict[str, list[str]], str]:
    """The exit status without any flag, the evidence by kind, and the settings that were read off."""
    done = run("check", *arguments)
    document = json.loads(run("check", *arguments, "--json").out)
    found: dict[str, list[str]] = {}
    for each in document["findings"]:
        found.setdefault(each["kind"], []).append(each["evidence"])
    *_, settings, _ = ["", *done.out.splitlines()]
    if document["arguments"] is not None:
        assert settings == f"by the rules, the settings are {shlex.join(document['arguments'])}"
    return done.status, found, settings.removeprefix("by the rules, the settings are ")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_good_pod_needs_no_flags(backend: str) -> None:
    """Its settings are read off the rules, and these are as they make them."""
    install(backend, *FLAGS, "--ip-family", "ipv4")
    with listening(15001, 15006):
        status, found, settings = alone()
    assert (status, set(found)) == (0, {"dns"})
    assert settings == "-i '*' -b '*' -d 15090,15021,15020 --ip-family ipv4"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_broken_install_needs_no_flags(backend: str) -> None:
    """What is missing, moved and foreign is told by the settings that the other rules tell."""
    install(backend, *FLAGS, "--ip-family", "ipv4")
    tool = f"iptables-{backend}"
    command(tool, "-t", "nat", "-D", "ISTIO_OUTPUT", "4")
    command(tool, "-t", "nat", "-D", "ISTIO_INBOUND", "1")
    command(
        *(tool, "-t", "nat", "-A", "ISTIO_INBOUND", "-p", "tcp", "--dport", "15008"),
        *("-j", "RETURN"),
    )
    command(tool, "-t", "nat", "-I", "OUTPUT", "-p", "udp", "-j", "ACCEPT")
    with listening(15001, 15006):
        status, found, settings = alone()
    assert (status, set(found)) == (
        1,
        {"missing-rule", "moved-rule", "foreign-rule", "loop", "dns"},
    )
    assert found["missing-rule"] == [
        "missing: IPv4 nat ISTIO_OUTPUT rule 4: -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN"
    ]
    assert "-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN" in found["moved-rule"][0]
    assert settings == "-i '*' -b '*' -d 15090,15021,15020 --ip-family ipv4"


def test_rules_that_were_installed_twice() -> None:
    """The settings are those of one copy, the other is extra, and that is said."""
    install("legacy", *FLAGS, "--ip-family", "ipv4")
    saved = subprocess.run(
        ["iptables-legacy-save", "-t", "nat"], capture_output=True, check=True
    ).stdout
    restored = b"".join(
        line for line in saved.splitlines(keepends=True) if not line.startswith(b":ISTIO")
    )
    subprocess.run(["iptables-legacy-restore", "-n"], input=restored, check=True)
    with listening(15001, 15006):
        status, found, settings = alone()
    assert (status, set(found)) == (1, {"extra-rule", "origin", "dns"})
    assert found["origin"][0].startswith("every rule of ours is there 2 times")
    assert settings == "-i '*' -b '*' -d 15090,15021,15020 --ip-family ipv4"


def test_native_rules_need_no_flags() -> None:
    """They are found and compared, and packets are followed through them."""
    assert run("--native-nftables", *FLAGS, "--ip-family", "dual").status == 0
    with listening(15001, 15006):
        status, found, settings = alone()
    assert (status, set(found)) == (1, {"no-listener", "dns"})
    assert settings == "-i '*' -b '*' -d 15090,15021,15020 --ip-family dual --native-nftables"
    command("nft", "delete", "chain", "inet", "istio-proxy-nat", "prerouting")
    status, found, settings = alone()
    assert found["missing-rule"][0].startswith("missing: inet istio-proxy-nat prerouting")
    assert settings == "-i '*' -b '*' -d 15090,15021,15020 --ip-family dual --native-nftables"


def test_nothing_is_there() -> None:
    """That is one finding, about the backend that was looked at; no settings can be told."""
    status, found, settings = alone()
    assert (status, set(found)) == (1, {"nothing-installed"})
    assert found["nothing-installed"][0].startswith(
        "no rules of ours are in the live rules (legacy)"
    )
    assert "settings" not in settings


def test_a_route_that_is_gone_needs_no_flags() -> None:
    """The settings tell that there has to be one."""
    install("nft", *FLAGS, "-m", "TPROXY", "--ip-family", "ipv4")
    command("ip", "rule", "del", "fwmark", "1337")
    status, found, settings = alone()
    assert status == 1
    assert found["missing"] == ["missing: IPv4: ip -4 rule add fwmark 0x539 lookup 133"]
    assert settings == "-i '*' -m TPROXY -b '*' -d 15090,15021,15020 --ip-family ipv4"
