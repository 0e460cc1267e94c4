"""What can't be read, or has no effect, is never taken for what is not there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from istio_iptables import sockets
from istio_iptables.errors import KernelRefused
from istio_iptables.istio.ownership import OWNERSHIP
from istio_iptables.kernel import nftables
from istio_iptables.kernel.live import UnseenChain, read
from istio_iptables.netfilter.model import Family
from istio_iptables.netfilter.plan import DesiredState
from tests.kernel.configurations import DUAL
from tests.kernel.sandbox import CLI, Finished, command, install, load, needs, process, run, state
from tests.namespaces import BACKENDS, mount

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("box"), needs("nft")]

#: Each command on our rules, and its exit status when it can't read them.
COMMANDS = {
    "diff": (("diff", *DUAL), 2),
    "explain": (("explain", "--live", "--dst", "192.0.2.1:80"), 2),
    "install": (DUAL, 1),
    "reconcile": ((*DUAL, "--reconcile", "-u", "7"), 1),
    "clean": (("clean",), 1),
}
OTHER = {"legacy": "nft", "nft": "legacy"}


def errors(result: Finished) -> list[str]:
    """The errors that a process told."""
    return [line for line in result.err.splitlines() if " error: " in line]


def with_proc(prepare: str, *arguments: str) -> Finished:
    """Run the program where *prepare* has changed /proc."""
    return process(
        "unshare", "--mount", "sh", "-c", f'{prepare} && exec "$0" "$@"', CLI, *arguments
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hidden", ["-o subset=pid", "-o hidepid=2"])
def test_a_proc_with_less_in_it(hidden: str, backend: str) -> None:
    """Without /proc/net: the rules are found where they are, and nothing comes to be beside them."""
    install(backend, *DUAL)
    before = state()
    prepare = f"mount -t proc {hidden} none /proc"
    result = with_proc(prepare, "diff", *DUAL)
    assert (result.status, result.err) == (0, "")
    assert "captured by Envoy" in with_proc(prepare, *COMMANDS["explain"][0]).out
    assert "nothing to do" in with_proc(prepare, *DUAL).err
    assert state() == before
    assert with_proc(prepare, "clean").status == 0
    assert state().nft == state().legacy == ({}, {})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_proc_at_all(name: str, backend: str) -> None:
    """Which legacy tables there are can't be told: one line, which names /proc."""
    install(backend, *DUAL)
    before = state().legacy, state().nft
    arguments, status = COMMANDS[name]
    result = with_proc("mount -t tmpfs none /proc", *arguments)
    assert (result.status, result.out, len(errors(result))) == (status, "", 1)
    assert "is /proc mounted?" in result.err
    assert (state().legacy, state().nft) == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["diff", "explain"])
def test_few_files_may_be_open(name: str, backend: str) -> None:
    """From 5 files on, the answer is right or there is none, and the line says why."""
    install(backend, *DUAL)
    before = state()
    for limit in range(5, 12):
        arguments, status = COMMANDS[name]
        result = process("prlimit", f"--nofile={limit}:{limit}", CLI, *arguments)
        assert "Traceback" not in result.err
        if result.status == 0:
            continue
        assert (result.status, result.out) == (status, "")
        assert any("Too many open files" in line for line in errors(result))
        assert state() == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["diff", "explain"])
def test_little_memory(name: str, backend: str) -> None:
    """However little there is: the right answer or none, and "there are differences" is an answer."""
    install(backend, *DUAL)
    arguments, _ = COMMANDS[name]
    statuses = set()
    for size in range(17, 31):
        result = process("prlimit", f"--as={size << 20}", CLI, *arguments)
        statuses.add(result.status)
        if result.status == 0:
            assert "as planned" in result.out or "captured by Envoy" in result.out
        else:
            assert result.out == ""
            # Python itself may not have come as far as to the command.
            assert result.status == 2 or not result.err.startswith("istio-iptables: error: can't")
    assert {0, 2} <= statuses


class _Interrupted(sockets.socket):
    """A socket in whose dumps somebody changes the table, as often as *changes* says."""

    changes = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        """What comes next; the kernel has then made one more part of its answer at most."""
        if _Interrupted.changes > 0:
            _Interrupted.changes -= 1
            _fill_table()
        return super().recv(size, flags)


def _fill_table() -> None:
    """Put as many rules into a table as there are for one dump in ten parts, in place of the old."""
    rules = "".join(f"add rule ip t c ip daddr 10.0.0.{n % 200} counter\n" for n in range(1500))
    text = f"add table ip t\nadd chain ip t c\nflush chain ip t c\n{rules}"
    command("nft", "-f", "-", stdin=text)


def test_a_dump_that_others_change_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is begun again, until all of it is of one moment; it is refused if that never comes."""
    _fill_table()
    monkeypatch.setattr(sockets, "socket", _Interrupted)
    for changes in (0, 1, 3):
        _Interrupted.changes = changes
        command("nft", "add rule ip t c accept")
        assert len(list(nftables.rules())) == (1500 if changes else 1501)
    _Interrupted.changes = 10_000
    with pytest.raises(KernelRefused, match="changed by another program") as refused:
        list(nftables.rules())
    assert refused.value.busy


@pytest.mark.parametrize("forced", [(), *(("--force-iptables-binary", each) for each in BACKENDS)])
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("foreign", ["", "*nat\n-A OUTPUT -j RETURN\nCOMMIT\n"])
def test_ours_beside_rules_that_iptables_can_not_show(
    foreign: str, name: str, forced: tuple[str, ...]
) -> None:
    """Our chains are known by their names: no second copy, no false answer, no advice to make one."""
    install("nft", *DUAL)
    command("nft", "insert rule ip nat OUTPUT ct state new tcp dport 8080 accept")
    if foreign:
        load("legacy", Family.IPV4, foreign)
    before = state(backends=("legacy",)), command("nft", "list", "ruleset")
    arguments, status = COMMANDS[name]
    result = run(*arguments, *forced)
    assert (result.status, result.out) == (status, "")
    assert len(result.errors) == 1
    assert "IPv4 table nat (nft) holds chains of ours and can't be read" in result.errors[0]
    assert "--force-iptables-binary" not in result.errors[0]
    assert (state(backends=("legacy",)), command("nft", "list", "ruleset")) == before


def test_tables_that_nobody_asked_about() -> None:
    """A foreign table that iptables can't show is no reason to refuse, in either backend."""
    command("nft", "table ip filter { chain INPUT { type filter hook input priority 0; }; }")
    command("nft", "add rule ip filter INPUT ct state vmap { invalid : drop }")
    for backend in BACKENDS:
        forced = ("--force-iptables-binary", backend)
        assert run(*DUAL, *forced).status == 0
        assert run("diff", *DUAL, *forced).status == 0
        assert run("diff", *DUAL).status == 0
        assert read(DesiredState(()), OWNERSHIP).unreadable == ("IPv4 filter (nft)",)
        assert run("explain", "--live", "--dst", "192.0.2.1:80").status == 0
        assert run("clean", *forced).status == 0
    assert "ct state vmap" in command("nft", "list", "ruleset")


@pytest.mark.parametrize("backend", BACKENDS)
def test_ours_in_the_other_backend_are_one_line(backend: str) -> None:
    """Diff and install say the same of them, once; a reconcile moves them."""
    install(OTHER[backend], *DUAL)
    forced = ("--force-iptables-binary", backend)
    told = [line for line in run("diff", *DUAL, *forced).out.splitlines() if "extra" in line]
    refused = [line for line in run(*DUAL, *forced).errors if "extra" in line]
    assert told == refused
    where = f"the {OTHER[backend]} backend, which take effect as well: IPv4 nat, IPv6 nat"
    assert told == [f"extra: rules of ours in {where}"]
    assert run(*DUAL, *forced, "--reconcile").status == 0
    assert run("diff", *DUAL, *forced).status == 0


def test_a_dormant_table() -> None:
    """Rules in it have no effect: none are put in, and those that are there count as missing."""
    command("nft", "add table ip nat { flags dormant; }")
    reason = "the IPv4 table nat (nft) is dormant: the kernel applies none of its rules"
    assert install("nft", *DUAL).errors == [reason]
    command("nft", "delete table ip nat")
    install("nft", *DUAL)
    command("nft", "add table ip nat { flags dormant; }")
    result = run("diff", *DUAL)
    assert (result.status, result.warnings) == (1, [reason])
    assert "missing: IPv4 nat OUTPUT" in result.out
    assert "IPv6" not in result.out.replace("IPv4 and IPv6", "")
    explained = run("explain", "--live", "--dst", "192.0.2.1:80")
    assert (explained.status, explained.warnings[:1]) == (0, [reason])
    assert "captured" not in explained.out
    for arguments in (DUAL, (*DUAL, "--reconcile")):
        result = run(*arguments)
        assert (result.status, result.errors) == (1, [reason])
    assert run("clean").status == 0
    assert state().nft == ({}, {})


@contextlib.contextmanager
def owned_by_another(table: str, chain: str) -> Iterator[None]:
    """A table with a chain that is another process's as long as the block."""
    with subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as owner:
        assert owner.stdin is not None
        owner.stdin.write(f"add table {table} {{ flags owner; chain {chain} {{ }}; }}\n".encode())
        owner.stdin.flush()
        deadline = time.monotonic() + 10
        while f"chain {chain}" not in command("nft", "list", "ruleset"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield


def test_a_table_that_another_process_owns() -> None:
    """It can be read by all and changed by its owner alone: said in one line."""
    with owned_by_another("ip nat", "ISTIO_OUTPUT"):
        forced = ("--force-iptables-binary", "nft")
        for arguments in ((*DUAL, "--reconcile"), (*DUAL, *forced), ("clean",)):
            result = run(*arguments)
            assert result.status == 1
            assert ["is owned by another process" in line for line in result.errors] == [True]
        result = run("diff", *DUAL)
        assert result.status == 1
        assert len(result.warnings) == 1
        assert "is owned by another process" in result.warnings[0]


def test_a_native_table_that_another_process_owns() -> None:
    """The same of our own tables, which nft alone would refuse in its own words."""
    with owned_by_another("inet istio-proxy-nat", "output"):
        for arguments in (("--native-nftables", *DUAL, "--reconcile"), ("clean",)):
            result = run(*arguments)
            assert result.status == 1
            assert ["is owned by another process" in line for line in result.errors] == [True]


#: Native rules that iptables-nft-save 1.8.9 prints without a part of them.
UNSHOWN = {
    'iifname { "a", "b" } accept': (False, True),
    "ip daddr { 192.0.2.1, 192.0.2.2 } accept": (False, True),
    "tcp dport { 80, 81 } accept": (False, True),
    "ip daddr 192.0.2.1-192.0.2.9 accept": (False, True),
    "ip daddr 192.0.2.1 ip daddr 192.0.2.2 accept": (False, True),
    "ip daddr vmap { 192.0.2.1 : accept }": (False, False),
    "ip daddr set 192.0.2.1": (True, False),
    "@ih,0,8 5 counter accept": (False, True),
    "tcp window 5 accept": (False, True),
    "tcp doff 5 accept": (False, True),
    "tcp sequence 5 accept": (False, True),
    "udp length 5 accept": (False, True),
    "tcp dport & 15 == 1 accept": (False, True),
    "ip protocol & 6 == 6 accept": (False, True),
    "meta oif & 1 == 1 accept": (False, True),
    "log group 2 accept": (True, False),
}


@pytest.mark.parametrize("rule", UNSHOWN)
def test_rules_that_iptables_shows_wrongly(rule: str) -> None:
    """They count as rules that may match or do anything, and stay as they are."""
    install("nft", *DUAL)
    command("nft", f"insert rule ip nat OUTPUT {rule}")
    matches, target = UNSHOWN[rule]
    found = read(DesiredState(()), OWNERSHIP).rulesets[0].table("nat")
    chain = found.chain("OUTPUT") if found else None
    text = chain.rules[0].text if chain else ""
    assert ("-m native-nftables" in text, "-j native-nftables" in text) == (not matches, not target)
    before = command("nft", "list", "chain", "ip", "nat", "OUTPUT").splitlines()[3]
    assert run(*DUAL, "-u", "7", "--reconcile").status == 0
    assert run("clean").status == 0
    assert before in command("nft", "list", "ruleset").splitlines()


@pytest.mark.parametrize(
    "rule",
    [
        "ip daddr 192.0.2.1 tcp dport 80-90 counter accept",
        "tcp sport 5 tcp dport > 6 accept",
        "ip saddr & 255.0.255.0 == 10.0.3.0 accept",
        "meta mark & 0xff == 0x5 accept",
        "log group 2",
    ],
)
def test_native_rules_that_iptables_shows(rule: str) -> None:
    """They are read as they are shown, and so is every rule of iptables' own."""
    install("nft", *DUAL, "--redirect-dns", "--capture-all-dns")
    command("nft", f"insert rule ip nat OUTPUT {rule}")
    assert all(all(nftables.shown(each)) for *_, each in nftables.rules())


def test_a_jump_of_ours_that_was_given_a_native_condition() -> None:
    """Captures nothing: diff and explain say so, reconcile puts it right, clean removes it."""
    install("nft", *DUAL)
    for wanted in (("--reconcile", *DUAL), ("clean",)):
        listed = command("nft", "-a", "list", "chain", "ip", "nat", "OUTPUT")
        handle = listed.partition("jump ISTIO_OUTPUT # handle ")[2].split()[0]
        changed = f"handle {handle} @ih,0,8 5 counter jump ISTIO_OUTPUT"
        command("nft", f"replace rule ip nat OUTPUT {changed}")
        assert run("diff", *DUAL).status == 1
        assert "depends on" in run("explain", *DUAL, "--live", "--dst", "192.0.2.1:80").out
        assert run(*wanted).status == 0
    assert "ISTIO" not in command("nft", "list", "ruleset")


def test_foreign_rules_that_look_like_an_excluded_interface() -> None:
    """What iptables does not show of them makes them foreign: clean leaves them."""
    rule = 'iifname "foo" log group 2 counter packets 0 bytes 0 return'
    command(
        "nft",
        "table ip nat { chain ISTIO_INBOUND { counter; }; chain ISTIO_OUTPUT { counter; };"
        f" chain PREROUTING {{ type nat hook prerouting priority -100; {rule};"
        " counter jump ISTIO_INBOUND; };"
        f" chain OUTPUT {{ type nat hook output priority -100; {rule.replace('iif', 'oif')};"
        " counter jump ISTIO_OUTPUT; }; }",
    )
    assert run("clean").status == 0
    left = command("nft", "list", "ruleset")
    assert rule in left
    assert rule.replace("iif", "oif") in left
    assert "ISTIO" not in left


def test_chains_that_iptables_does_not_show() -> None:
    """Each base chain that does something at our hooks, and none of those that do nothing."""
    install("nft", *DUAL)
    command(
        "nft",
        "table inet x { chain o { type nat hook output priority -150; accept; };"
        " chain p { type filter hook input priority 5; policy drop; };"
        " chain empty { type filter hook forward priority 0; };"
        " chain plain { accept; }; };"
        "table ip nat { chain own { type nat hook prerouting priority -101; accept; }; };"
        "table ip y { chain OUTPUT { type filter hook output priority 0; accept; }; };"
        "table ip z { flags dormant; chain o { type filter hook output priority 0; accept; }; };"
        'table netdev n { chain i { type filter hook ingress device "lo" priority 1; accept; }; };'
        "table bridge b { chain i { type filter hook input priority 1; accept; }; }",
    )
    assert set(read(DesiredState(()), OWNERSHIP).native_chains) == {
        UnseenChain("inet", "x", "o", "nat", "OUTPUT", -150),
        UnseenChain("inet", "x", "p", "filter", "INPUT", 5),
        UnseenChain("ip", "nat", "own", "nat", "PREROUTING", -101),
        UnseenChain("ip", "y", "OUTPUT", "filter", "OUTPUT", 0),
        UnseenChain("netdev", "n", "i", "filter", "INGRESS", 1),
    }
    assert run("diff", *DUAL).status == 0


@pytest.mark.parametrize("hook", ["type nat hook output priority -150;", ""])
@pytest.mark.parametrize("ours", [True, False])
def test_a_foreign_chain_of_a_built_in_name(ours: bool, hook: str) -> None:  # noqa: FBT001 - a case
    """Iptables shows an empty OUTPUT, or two of them: the table can't be read."""
    chain = "chain ISTIO_OUTPUT { accept; };" if ours else ""
    text = f"table ip nat {{ {chain} chain OUTPUT {{ {hook} counter accept; }}; }}"
    command("nft", text)
    before = command("nft", "list", "ruleset")
    for arguments, status in COMMANDS.values():
        result = run(*arguments)
        if arguments == ("clean",) and not ours:
            assert result.status == 0
            continue
        assert (result.status, result.out, len(result.errors)) == (status, "", 1)
        assert "its chain OUTPUT has another type, hook or priority" in result.errors[0]
        assert ("--force-iptables-binary legacy" in result.errors[0]) != ours
    assert command("nft", "list", "ruleset") == before


NAMES = (b"\xe9t\xe9", b"ISTIO_\xe9")
COMMENT = b'a\xe9 "b"\nc'


def test_names_and_comments_of_any_bytes() -> None:
    """Legacy chains that are not UTF-8 and comments of two lines: kept, and ours removed."""
    for name in NAMES:
        command("iptables-legacy", "-t", "nat", "-N", os.fsdecode(name))
        command("iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-j", os.fsdecode(name))
    words = ("-m", "comment", "--comment", os.fsdecode(COMMENT), "-j", "RETURN")
    command("iptables-legacy", "-t", "nat", "-A", os.fsdecode(NAMES[0]), *words)
    result = run(*DUAL)
    assert result.status == 1
    assert any(
        "extra: IPv4 nat OUTPUT rule 2: -A OUTPUT -j ISTIO_" in each for each in result.errors
    )
    for arguments in ((*DUAL, "--reconcile"), (*DUAL, "-u", "7", "--reconcile")):
        assert run(*arguments).status == 0
    assert run("diff", *DUAL, "-u", "7").status == 1
    assert run("explain", "--live", "--dst", "192.0.2.1:80").status == 0
    assert run("clean").status == 0
    table = read(DesiredState(()), OWNERSHIP).rulesets[0].table("nat")
    assert table is not None
    mine = [chain.name for chain in table.chains if chain.name.startswith("ISTIO")]
    chain = table.chain(os.fsdecode(NAMES[0]))
    assert (mine, len(chain.rules if chain else ())) == ([], 1)
    assert chain is not None
    assert chain.rules[0].matches[0].options[0].values == (os.fsdecode(COMMENT),)


@pytest.mark.parametrize("kind", ["fifo", "folder", "mount", "number"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_network_namespace(name: str, kind: str) -> None:
    """It is named, at once, in one line."""
    os.mkfifo("/run/fifo")
    Path("/run/folder").mkdir()
    given, told = {
        "fifo": ("/run/fifo", "it is a FIFO"),
        "folder": ("/run/folder", "it is a directory"),
        "mount": ("/proc/self/ns/mnt", "it is a mount namespace"),
        "number": ("4242", "(for process 4242: /proc/4242/ns/net)"),
    }[kind]
    arguments, status = COMMANDS[name]
    result = run(*arguments, "--network-namespace", given)
    assert (result.status, len(result.errors), result.warnings) == (status, 1, [])
    assert told in result.errors[0]


def test_the_dns_servers_of_the_process_s_own_file() -> None:
    """A namespace named by a process: its resolv.conf counts, wherever its links lead there."""
    Path("/run/resolv.conf").write_text("nameserver 192.0.2.1\n")
    mount("/run/resolv.conf", "/etc/resolv.conf", bind=True)
    script = (
        "mount -t tmpfs none /mnt && mkdir /mnt/real && ln -s /mnt/real /mnt/link"
        " && echo nameserver 192.0.2.7 > /mnt/real/file && mount --bind /mnt/real/file"
        " /etc/resolv.conf && ln -s ../../mnt/link/file /mnt/real/leads && echo ready && exec sleep 60"
    )
    words = ["unshare", "--net", "--mount", "sh", "-c", script]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as pod:
        assert pod.stdout is not None
        assert pod.stdout.readline() == b"ready\n"
        child = pod.pid
        here = ("--network-namespace", f"/proc/{child}/ns/net", "--ip-family", "ipv4")
        dns = ("-i", "*", "--redirect-dns")
        assert run(*dns, *here).status == 0
        found = run("diff", *dns, *here)
        assert found.status == 0
        assert f"the DNS servers are those of /proc/{child}/root/etc/resolv.conf" in found.err
        assert "192.0.2.7" in run(*dns, *here, "--dry-run").out
        assert run("diff", *dns, *here, "--resolv-conf", "/run/resolv.conf").status == 1
        leads = f"/proc/{child}/root/mnt/real/leads"
        assert "192.0.2.7" in run(*dns, *here, "--resolv-conf", leads, "--dry-run").out
        told = run("explain", *dns, "--ip-family", "ipv4").err
        assert "the DNS servers are those of /etc/resolv.conf" in told
        assert "DNS servers" not in run("explain", "-i", "*").err
        pod.kill()


#: An iptables-legacy-save that could not write its output, and did not look.
_SAVES = {
    "nothing": "#!/bin/sh\nexit 0\n",
    "a part": '#!/bin/sh\nprintf "*nat\\nCOMMIT\\n"\n',
}


@pytest.mark.parametrize("text", _SAVES.values(), ids=_SAVES)
def test_a_table_that_is_not_printed_is_not_absent(text: str, tmp_path: Path) -> None:
    """The kernel has named it: an empty text is no answer, whatever the exit status."""
    words = (*DUAL, "--force-iptables-binary", "legacy")
    assert run(*words).status == 0
    before = state()
    fake = tmp_path / "iptables-legacy-save"
    fake.write_text(text)
    fake.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"}
    for command_words, status in ((("diff", *words), 2), (words, 1), (("clean",), 1)):
        done = process(CLI, *command_words, environment=path)
        assert done.status == status, done
        assert "iptables-legacy-save does not show " in done.err
    assert state() == before
