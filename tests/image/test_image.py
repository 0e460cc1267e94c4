"""The container image: what is in it, and that it does in a pod what Istio's does."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from istio_iptables.lab.sandbox import in_sandbox, make_network, on_network
from istio_iptables.netfilter.nftlisting import read_listing
from tests.image.images import BASE, CAPABILITIES, Container, Ran, Store, inside
from tests.lab.labs import Inputs, run
from tests.namespaces import ALL_BACKENDS, BACKENDS
from tests.program import run as run_here

if TYPE_CHECKING:
    from pathlib import Path

    from istio_iptables.netfilter.plan import DesiredState

pytestmark = [pytest.mark.kernel, pytest.mark.image]

#: The arguments that Istio's template gives to the container.
ARTICLE = (
    *("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*"),
    *("-b", "*", "-d", "15090,15021,15020", "--log_output_level=default:info"),
)
#: The same pod for the lab, whose own settings are richer.
ARTICLE_FLAGS = {
    "istio_service_exclude_cidr": "",
    "istio_local_outbound_ports_exclude": "",
    "istio_exclude_interfaces": "",
    "redirect_dns": "false",
    "dual_stack": "false",
}

#: On its own; as Istio's template has it, where the first word is the entry point's; and by name.
STARTS = (
    ["istio-iptables"],
    ["istio-iptables", "istio-iptables"],
    ["pilot-agent", "istio-iptables"],
)

MEGABYTE = 1_000_000


def size(root: Path) -> int:
    """The bytes that the files below a folder take."""
    return sum(
        each.lstat().st_size for each in root.rglob("*") if each.is_file() and not each.is_symlink()
    )


class TestWhatIsInIt:
    """The image as a thing."""

    def test_small(self, store: Store, root: Path) -> None:
        """It adds less than 120 MB to its base."""
        added = size(root) - size(store.unpack(BASE))
        print(f"{added / MEGABYTE:.1f} MB above the base")
        assert added < 120 * MEGABYTE

    def test_nothing_to_build_with(self, root: Path) -> None:
        """No compiler, no pip, no headers and no lists of packages are in it."""
        programs = {each.name for each in root.glob("usr/*bin/*")}
        programs |= {each.name for each in root.glob("usr/local/*bin/*")}
        assert not programs & {"gcc", "cc", "ld", "as", "pip", "pip3", "make"}
        assert {"iptables-legacy-restore", "iptables-nft-restore", "nft"} <= programs
        assert not list(root.glob("usr/include/python3*"))
        assert not list(root.glob("usr/local/lib/python3*/dist-packages/pip*"))
        assert not list((root / "var/lib/apt/lists").glob("*"))

    def test_labels_and_entry_point(self, store: Store, image: str) -> None:
        """It says what it is, and starts the program."""
        about = json.loads(store.buildah("inspect", "--type", "image", image))["OCIv1"]["config"]
        assert about["Entrypoint"] == ["istio-iptables"]
        assert about["Labels"]["org.opencontainers.image.title"] == "istio-iptables"
        assert about["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"

    def test_reproducible(self, store: Store, image: str) -> None:
        """Built again from nothing, it is the same to the last bit."""
        assert store.build("istio-iptables:again", cached=False) == image


def in_a_pod(container: Container, *commands: tuple[list[str], dict[str, str]]) -> list[Ran]:
    """Run commands of the image one after the other in a fresh network with an address."""

    def work(_process: int) -> list[Ran]:
        network = make_network("pod")
        with on_network(network):
            ip = ["ip", "addr", "add", "10.0.0.1/32", "dev", "lo"]
            subprocess.run(ip, check=True)
            return [inside(container, words, env) for words, env in commands]

    return in_sandbox(work)


class TestInAPod:
    """The image's program with what Istio's template gives it."""

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("start", STARTS, ids=" ".join)
    @pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read-only"])
    def test_installs(self, root: Path, start: list[str], backend: str, *, read_only: bool) -> None:
        """With NET_ADMIN and NET_RAW alone, it installs the text that a dry run prints here."""
        container = Container(root, capabilities=CAPABILITIES, read_only=read_only)
        environment = {"FORCE_IPTABLES_BINARY": backend}
        installed, again, saved = in_a_pod(
            container,
            ([*start, *ARTICLE], environment),
            ([*start, *ARTICLE], environment),
            ([f"iptables-{backend}-save", "-t", "nat"], {}),
        )
        assert installed.status == 0, installed.err
        assert again.status == 0, again.err
        assert "nothing to do" in again.err
        expected = run_here(["--dry-run", "--ip-family", "ipv4", *ARTICLE]).out
        rules = [line for line in expected.splitlines() if line.startswith("-A")]
        assert [line for line in saved.out.splitlines() if line.startswith("-A")] == rules

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_tproxy(self, root: Path, backend: str) -> None:
        """The extensions, the routes and the address of TPROXY in both families work there too."""
        container = Container(root, capabilities=CAPABILITIES)
        words = ["istio-iptables", *ARTICLE, "-m", "TPROXY", "--ip-family", "dual"]
        (done,) = in_a_pod(container, (words, {"FORCE_IPTABLES_BINARY": backend}))
        assert done.status == 0, done.err

    @pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
    def test_installs_native_rules(self, root: Path, mode: str) -> None:
        """Its own nft takes them and lists them as a dry run prints them; twice is once."""
        container = Container(root, capabilities=CAPABILITIES, read_only=True)
        words = ["istio-iptables", *ARTICLE, "-m", mode, "--ip-family", "dual"]
        environment = {"NATIVE_NFTABLES": "true"}
        installed, again, listed, cleaned = in_a_pod(
            container,
            (words, environment),
            (words, environment),
            (["nft", "-s", "list", "ruleset"], {}),
            (["istio-iptables", "clean"], {}),
        )
        assert installed.status == cleaned.status == 0, (installed.err, cleaned.err)
        assert again.status == 0, again.err
        assert "nothing to do" in again.err
        expected = run_here(["--dry-run", "--native-nftables", *words[1:]]).out
        there, wanted = (read_listing(each.splitlines()) for each in (listed.out, expected))
        assert there == wanted

    def test_not_root(self, root: Path) -> None:
        """Any user without capabilities can print, from a read-only file system."""
        container = Container(root, uid=65534, gid=65534, read_only=True)
        (done,) = in_a_pod(container, (["istio-iptables", "--dry-run", *ARTICLE], {}))
        assert done.status == 0, done.err
        assert done.out == run_here(["--dry-run", "--ip-family", "ipv4", *ARTICLE]).out

    def test_without_the_lab(self, root: Path) -> None:
        """Nothing of it runs in an init container; the command says so."""
        assert not list(root.glob("usr/local/lib/python3*/dist-packages/istio_iptables/lab"))
        (done,) = in_a_pod(Container(root), (["istio-iptables", "lab"], {}))
        assert done.status == 2
        what = "it is not part of this installation (the container image leaves it out)"
        assert done.err.splitlines() == [f"istio-iptables: error: lab: {what}"]

    def test_without_a_capability(self, root: Path) -> None:
        """Without NET_ADMIN nothing is installed, and it says what is missing."""
        container = Container(root, capabilities=(13,))
        (done,) = in_a_pod(container, (["istio-iptables", *ARTICLE], {}))
        assert done.status == 1
        assert "CAP_NET_ADMIN" in done.err
        assert "Traceback" not in done.err


@pytest.mark.parametrize("backend", ALL_BACKENDS)
def test_traffic_passes(root: Path, backend: str) -> None:
    """Run as the pod's init container, the image makes all of the lab's traffic pass."""
    container = Container(root, capabilities=CAPABILITIES)

    def install(_plan: DesiredState, backend: str) -> None:
        words = ["pilot-agent", "istio-iptables", *ARTICLE]
        native = {"NATIVE_NFTABLES": "true"}
        asked = native if backend == "native" else {"FORCE_IPTABLES_BINARY": backend}
        done = inside(container, words, asked)
        assert done.status == 0, done.err

    outcome = run(Inputs(backend=backend), ARTICLE_FLAGS, installer=install)
    # That every one of a hundred connections at once is counted is for the lab's own tests.
    wrong = [
        line
        for each in outcome.results
        for line in each.differences
        if each.path.request.times == 1 or " counted " not in line
    ]
    assert wrong == []
