"""Configurations that differ in everything an install can leave behind."""

from __future__ import annotations

__all__ = ["CONFIGURATIONS", "DUAL", "TPROXY", "UNLIKE"]

_ALL = ("-i", "*", "-b", "*", "-d", "15090,15021,15020")
DUAL = (*_ALL, "--ip-family", "dual")
TPROXY = (*DUAL, "-m", "TPROXY")

#: By name: what each has that others lack.
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "documented": (*_ALL, "--ip-family", "ipv4"),
    "dual": DUAL,
    "tproxy": TPROXY,
    "tproxy-ipv4": (*_ALL, "--ip-family", "ipv4", "-m", "TPROXY"),
    "tproxy-other-mark": (*TPROXY, "-t", "1400", "-r", "140"),
    "exclude-interface": (*DUAL, "-c", "eth0"),
    "exclude-interfaces-tproxy": (*TPROXY, "-c", "eth0,br+"),
    "virtual-interfaces": (*DUAL, "-k", "net1,net2"),
    "virtual-and-excluded": (*DUAL, "-k", "net1", "-c", "eth0,eth1"),
    "drop-invalid": (*DUAL, "--drop-invalid"),
    "dns": (*DUAL, "--redirect-dns", "--capture-all-dns"),
    "nothing-inbound": ("-i", "10.0.0.0/8,fd00::/8", "-x", "10.9.0.0/16", "--ip-family", "dual"),
    "everything": (
        *TPROXY,
        *("-c", "eth0", "-k", "net1", "-u", "1337,1338", "-o", "9000", "--drop-invalid"),
        *("--redirect-dns", "--capture-all-dns"),
    ),
}

#: Pairs of neighbours, each of which has tables, chains, routes or addresses the other lacks.
UNLIKE = (
    ("tproxy", "documented"),
    ("documented", "tproxy"),
    ("everything", "dual"),
    ("dual", "everything"),
)
