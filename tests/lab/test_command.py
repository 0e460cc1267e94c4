"""``istio-iptables lab`` as a user types it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.program import run

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT_PASS_THROUGH = ["--without", "nat ISTIO_OUTPUT 3"]


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program with these arguments, as a process."""
    return subprocess.run(
        [sys.executable, "-m", "istio_iptables", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.kernel
def test_text() -> None:
    """The report says who is there, shows each connection with its rules and counts, and a verdict."""
    done = program("lab", "--path", "client-app", "--backend", "legacy")
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert done.stdout.startswith("pod:     10.77.0.10, fd77::10, ")
    assert "Envoy as user 1337, the rules\n" in done.stdout
    shown = re.sub(r"raw (\w+) 1 \[\d+\]", r"raw \1 1", done.stdout)
    assert (
        """
client to the app, IPv4: as predicted
  client 10.77.0.20 -> 10.77.0.10:8080
    raw PREROUTING 1, nat PREROUTING 2 [1], ISTIO_INBOUND 5 [1],
    ISTIO_IN_REDIRECT 1 [1]
    => Envoy inbound of pod on port 15006 [1]
  pod 127.0.0.6 -> 10.77.0.10:8080
    raw OUTPUT 1, nat OUTPUT 2 [1], ISTIO_OUTPUT 3 [1],
    raw PREROUTING 1
    => app
  app saw 127.0.0.6, by way of pod inbound
"""
        in shown
    )
    last = done.stdout.splitlines()[-1]
    assert last.startswith("sidecar, REDIRECT, legacy: 2 of 2 paths as predicted, in ")


@pytest.mark.kernel
def test_text_in_full() -> None:
    """-v gives each rule a line with its text, and its reason below; one family can be asked for."""
    done = program("lab", "--path", "client-app", "--backend", "legacy", "--ip-family=ipv4", "-v")
    assert (
        "    nat ISTIO_IN_REDIRECT 1 [1] -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n"
        "        Captured inbound connections go to Envoy's inbound listener on port\n"
        "        15006, which forwards them to the application.\n"
    ) in done.stdout
    assert "IPv6" not in done.stdout
    assert "1 of 1 paths as predicted" in done.stdout


@pytest.mark.kernel
def test_json() -> None:
    """The same as JSON: prediction and count of each rule, whose reason is with it."""
    done = program("lab", "--json", "--path", "app-server", "--mode", "TPROXY", "--backend", "nft")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["mode"], report["backend"], report["as_predicted"]) == ("TPROXY", "nft", True)
    path = report["paths"][0]
    assert path["seen"] == [path["predicted"]]
    assert path["legs"][0]["to_port"] == 15001
    assert all(rule["reason"] for leg in path["legs"] for rule in leg["path"])
    assert {"node": "pod", "listener": "outbound", "predicted": 1, "counted": 1} in path[
        "listeners"
    ]


@pytest.mark.kernel
def test_native() -> None:
    """Native rules, treated as iptables' in sets too, are named as nft has them."""
    words = ("lab", "--json", "--path", "app-server", "--backend", "native", "--nft-sets")
    done = program(*words, "--nft-like-iptables", "-b", "80,8080,9000", "--mode", "TPROXY")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["mode"], report["backend"], report["as_predicted"]) == ("TPROXY", "native", True)
    met = report["paths"][0]["legs"][0]["path"]
    (capture,) = (rule for rule in met if rule["chain"] == "istio-redirect")
    assert capture["table"] == "inet istio-proxy-nat"
    assert capture["text"] == "meta l4proto tcp counter redirect to :15001"
    assert capture["reason"].startswith("Captured outbound connections go to Envoy's")


@pytest.mark.kernel
def test_a_pod_of_a_manifest(tmp_path: Path) -> None:
    """Its settings, with a flag over them, and none of the lab's own."""
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n"
        "    traffic.sidecar.istio.io/excludeOutboundPorts: '9000'\n"
        "spec: {containers: [{name: app}]}\n",
        encoding="utf-8",
    )
    words = ("lab", "--pod", str(manifest), "-p", "16001", "--path", "app-server", "--json")
    done = program(*words)
    assert done.returncode == 0, done.stderr
    legs = json.loads(done.stdout)["paths"][0]["legs"]
    # One connection, and no listener of Envoy's in between.
    assert [leg["to_port"] for leg in legs] == [None]
    done = program(*words, "--cni", "-o", "", "--mode", "TPROXY")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["mode"], report["paths"][0]["legs"][0]["to_port"]) == ("TPROXY", 16001)


@pytest.mark.kernel
def test_a_missing_rule_fails() -> None:
    """A path that does not go as predicted makes exit status 1, and the difference is told."""
    done = program("lab", "--path", "client-app", *WITHOUT_PASS_THROUGH)
    assert done.returncode == 1
    assert "  ! pod: nat ISTIO_OUTPUT 3 counted 0, predicted 1" in done.stdout.splitlines()


@pytest.mark.kernel
def test_own_ports() -> None:
    """The lab's Envoy listens where the flags say."""
    done = program(
        "lab",
        "-p",
        "16001",
        "-z",
        "16006",
        "-u",
        "2337",
        "--path",
        "client-app",
        "--path",
        "app-service",
    )
    assert done.returncode == 0, done.stdout
    assert "=> Envoy outbound of pod on port 16001" in done.stdout
    assert "=> Envoy inbound of pod on port 16006" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--path", "nowhere"],
            "--path: there is no path 'nowhere' in the scenario sidecar: it has client-app, ",
        ),
        (["--without", "nat ISTIO_OUTPUT 99"], "--without: 'nat ISTIO_OUTPUT 99': the plan has no"),
        (
            ["--without", "all"],
            "--without: 'all': the plan has no such rule (write TABLE CHAIN NUMBER)",
        ),
        (
            ["--backend", "native", "--without", "nat ISTIO_OUTPUT 3"],
            "--without: 'nat ISTIO_OUTPUT 3': the plan has no such rule",
        ),
        (["--mode", "tproxy"], "--istio-inbound-interception-mode (-m): 'tproxy'"),
        (["--dry-run"], "--dry-run: this is an option of istio-iptables itself, not of lab"),
        (["--scenario", "nothing"], "--scenario: 'nothing' is not one of sidecar, "),
    ],
)
def test_refusals(arguments: list[str], problem: str) -> None:
    """What can't be is refused before anything is built, with exit status 2."""
    result = run(["lab", *arguments])
    assert (result.status, result.out) == (2, "")
    assert result.errors[0].startswith(problem)


def test_nothing_of_it_is_loaded_by_others() -> None:
    """Help and a dry run load none of the lab."""
    code = (
        "import sys; from istio_iptables.cli import main;"
        " main(['--help']); main(['-n', '--ip-family', 'ipv4']);"
        " print([name for name in sys.modules if 'istio_iptables.lab' in name or 'asyncio' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.kernel
def test_in_a_user_namespace_without_its_users() -> None:
    """Each user that the lab needs and that is not mapped is a line, before anything is built."""
    words = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-m"]
    done = subprocess.run(
        [*words, "istio_iptables", "lab"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert [line.split(" is not mapped")[0] for line in done.stderr.splitlines()] == [
        f"istio-iptables: error: {kind} {number}"
        for kind in ("uid", "gid")
        for number in (1000, 1337)
    ]
