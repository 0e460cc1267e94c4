"""The certificate that the webhook shows, and what it takes of TLS."""

from __future__ import annotations

import ssl

from istio_iptables.errors import UsageProblems

__all__ = ["server_context"]

#: What each file has to hold.
_PARTS = {"--tls-cert": "CERTIFICATE", "--tls-key": "PRIVATE KEY"}


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """How connections are made with the files *certificate* and *key*; raises UsageProblems."""
    problems = []
    for (option, part), path in zip(_PARTS.items(), (certificate, key), strict=True):
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - a path may be any text
                content = file.read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            problems.append(f"{option}: can't read {path}: {reason}")
            continue
        if b"-----BEGIN " not in content or f"{part}-----".encode() not in content:
            problems.append(f"{option}: {path} holds no {part} in PEM")
        elif b"ENCRYPTED" in content:
            problems.append(f"{option}: {path} is encrypted: give a key without a passphrase")
    if problems:
        raise UsageProblems(problems)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a passphrase, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        said = f"can't be used with {certificate}: {error}"
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            said = f"is not the key of {certificate}"
        raise UsageProblems([f"--tls-key: {key} {said}"]) from error
    return context
