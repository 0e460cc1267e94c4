"""Several network namespaces in one call: each on its own, and nothing is left of them in the process."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from istio_iptables import Capture, Differs, KernelRefused, Live, clean, diff, install, plan
from tests.kernel.configurations import CONFIGURATIONS
from tests.kernel.sandbox import CLI, PATH, run
from tests.namespaces import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box")]

NAMES = ("one", "two", "three")
DOCUMENTED = CONFIGURATIONS["documented"]


@pytest.fixture(autouse=True)
def _networks(box: object) -> Iterator[None]:
    """Named namespaces, in a /run that is the test's own."""
    del box
    for name in NAMES:
        subprocess.run(("ip", "netns", "add", name), check=True)
    yield
    for name in NAMES:
        subprocess.run(("ip", "netns", "del", name), check=True)


def in_all(*names: str) -> list[str]:
    """The flags for these namespaces."""
    return [f"--network-namespace={name}" for name in names]


def rules(name: str, backend: str) -> int:
    """How many rules of ours there are in a namespace."""
    words = ("ip", "netns", "exec", name, f"iptables-{backend}-save")
    return subprocess.run(words, capture_output=True, check=True).stdout.count(b"ISTIO_")


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_gets_the_rules(backend: str) -> None:
    """As if each had been asked for alone; and clean takes them away again."""
    words = (*DOCUMENTED, "--force-iptables-binary", backend)
    done = run(*words, *in_all(*NAMES))
    assert (done.status, done.out) == (0, "")
    assert done.err.count(": installed 18 rules (IPv4)") == len(NAMES)
    for name in NAMES:
        assert run("diff", *words, *in_all(name)).status == 0
    assert run("clean", *in_all(*NAMES)).status == 0
    assert [rules(name, backend) for name in NAMES] == [0, 0, 0]


def test_a_failure_stops_none_of_the_others() -> None:
    """Exit status 1, the names in a line, a record of each."""
    assert run("-i", "10.0.0.0/8", "--ip-family", "ipv4", *in_all("two")).status == 0
    done = run(*DOCUMENTED, *in_all("one", "two", "nowhere", "three"), "--json")
    assert done.status == 1
    assert done.errors[-1] == "2 of 4 namespaces failed: two, nowhere"
    assert done.errors[0].startswith("two: other rules of ours are there")
    records = json.loads(done.out)["namespaces"]
    assert [each["namespace"] for each in records] == ["one", "two", "nowhere", "three"]
    assert [bool(each["errors"]) for each in records] == [False, True, True, False]
    assert records[0]["done"][-1] == "installed 18 rules (IPv4)"


def test_the_status_of_failures_of_one_kind() -> None:
    """It is theirs, also with a record: 126 where a validation failed."""
    probe = ("--skip-rule-apply", "--run-validation", "--probe-timeout=100ms", *DOCUMENTED)
    for words in (["--json"], in_all("one"), [*in_all("one"), "--json"], in_all("one", "two")):
        assert run(*probe, *words).status == 126, words
    assert run(*probe, *in_all("one", "nowhere")).status == 1
    for names in ([], in_all("one", "two")):
        done = run("clean", "--json=maybe", *names)
        assert (done.status, done.out) == (2, "")
        assert done.errors == ["--json: 'maybe' is not a boolean: write true or false"]


def test_what_was_done_before_an_interrupt_is_told() -> None:
    """On a terminal too, where there is a progress bar; and which lock is waited for."""
    master, terminal = pty.openpty()
    words = (CLI, *DOCUMENTED, "--cni-mode", *in_all("one", "two"), "--json")
    with Path("/run/netns/two").open(encoding="utf-8") as namespace:
        fcntl.flock(namespace, fcntl.LOCK_EX)
        with subprocess.Popen(
            words, stderr=terminal, stdout=subprocess.PIPE, env=PATH, text=True
        ) as installing:
            os.close(terminal)
            said = b""
            while b"two: waiting for the xtables lock" not in said:
                said += os.read(master, 4096)
            installing.send_signal(signal.SIGINT)
            out, _ = installing.communicate()
    os.close(master)
    assert installing.returncode == 130
    assert b"one: installed 18 rules" in said
    one, two = json.loads(out)["namespaces"]
    assert one["done"][-1] == "installed 18 rules (IPv4)"
    assert two["errors"] == ["interrupted"]


def test_from_a_thread() -> None:
    """A thread may be in another namespace than its process: what is there is read in the thread's."""
    documented = plan(Capture(istio_service_cidr="*", ip_family="ipv4"))
    install(documented, namespace="one")
    with ThreadPoolExecutor(1) as pool:
        (again,) = pool.submit(install, documented, namespaces=["one"]).result()
        assert again.lines[-1] == "the rules are in place already: nothing to do"
        assert not pool.submit(diff, documented, Live("one")).result()
        pool.submit(clean, namespace="one").result()
    assert rules("one", "legacy") == 0


def test_settings_that_can_be_used_nowhere() -> None:
    """They are told once; a dry run is for one namespace."""
    (line,) = run("-i", "x", *in_all("one", "two")).errors
    assert line.startswith("--istio-service-cidr (-i), item 1: 'x' is not a CIDR: write a network")
    done = run(*DOCUMENTED, "-n", *in_all("one", "two"))
    assert (done.status, done.out) == (2, "")


@pytest.mark.parametrize("words", [DOCUMENTED, ("clean",)])
def test_one_without_a_name(words: tuple[str, ...]) -> None:
    """Of a variable that is not set: the process's own namespace is not taken for it."""
    assert run("-i", "10.0.0.0/8", "--ip-family", "ipv4").status == 0
    done = run(*words, *in_all("one", ""))
    assert (done.status, done.out) == (2, "")
    (line,) = done.errors
    assert line.startswith("--network-namespace: one of several is empty")
    assert run("diff", "-i", "10.0.0.0/8", "--ip-family", "ipv4").status == 0
    assert rules("one", "legacy") == 0


def test_the_api_returns_a_list() -> None:
    """In order, with the exception of what failed."""
    documented = plan(Capture(istio_service_cidr="*", ip_family="ipv4"))
    install(plan(Capture(ip_family="ipv4")), namespace="two")
    found = install(documented, namespaces=["one", "two", "nowhere"])
    assert [each.namespace for each in found] == ["one", "two", "nowhere"]
    assert found[0].error is None
    assert found[0].lines[-1].startswith("installed ")
    assert isinstance(found[1].error, Differs)
    assert isinstance(found[2].error, KernelRefused)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_left_open(backend: str) -> None:
    """However many there are: no descriptor, no mount, and the process is where it was."""
    documented = plan(Capture(istio_service_cidr="*", ip_family="ipv4"))
    home = Path("/proc/self/ns/net").readlink()
    install(documented, namespace="one", backend=backend)
    clean(namespace="one")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        found = install(documented, namespaces=NAMES, backend=backend)
        assert [each.error for each in found] == [None] * len(NAMES)
        for name in NAMES:
            clean(namespace=name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert Path("/proc/self/ns/net").readlink() == home
