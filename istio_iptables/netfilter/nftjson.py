"""nft's JSON (``nft -j list ruleset``) to the lines of its listing, which are then read as such.

Written out is what nftrules knows; the rest stays as its JSON, and so is not understood.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from istio_iptables.errors import SaveFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["listing_of"]

_Json = Any


def listing_of(text: str) -> list[str]:
    """The lines that ``nft list ruleset`` has for the JSON of *text*; raises SaveFileError."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise SaveFileError(error.lineno, f"is no JSON: {error.msg}") from error
    except RecursionError as error:
        raise SaveFileError(1, "is no JSON of nft: too deep") from error
    except ValueError as error:
        raise SaveFileError(1, "is no JSON of nft: a number has too many digits") from error
    objects = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(objects, list):
        raise SaveFileError(1, 'is JSON, and none of nft: there is no list "nftables"')
    try:
        return list(_listing(objects))
    except KeyError as error:
        # A field, or the table or chain of a rule.
        raise SaveFileError(1, f"is no JSON of nft: {error} is missing") from error
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise SaveFileError(1, "is no JSON of nft: an object is not as nft prints it") from error


_TABLE_FLAGS = frozenset({"dormant", "owner", "persist"})


def _listing(objects: list[_Json]) -> Iterator[str]:
    tables: dict[str, dict[str, list[str]]] = {}
    for each in objects:
        ((kind, about),) = each.items()
        if kind == "metainfo":
            continue
        if kind == "table":
            name = f"{about['family']} {about['name']}"
            flags = _words(about.get("flags", []))
            if not _TABLE_FLAGS.issuperset(flags):
                # Some versions of nft print the table's name there.
                message = f"does not tell the flags of table {name}, which the text of nft does"
                raise SaveFileError(1, message)
            tables[name] = {"": [f"flags {','.join(flags)}"]} if flags else {}
            continue
        blocks = tables[f"{about['family']} {about['table']}"]
        if kind == "rule":
            blocks[f"chain {about['chain']}"].append(_rule(about))
        elif kind in {"chain", "set", "map"}:
            blocks[f"{kind} {about['name']}"] = list(_OBJECTS[kind](about))
        else:
            blocks[f"{kind} {about.get('name', '')}"] = [json.dumps(about)]
    for table, blocks in tables.items():
        yield f"table {table} {{"
        for name, lines in blocks.items():
            yield from (f"{name} {{", *lines, "}") if name else lines
        yield "}"


def _words(value: _Json) -> list[str]:
    return [str(each) for each in (value if isinstance(value, list) else [value])]


def _chain(about: _Json) -> Iterator[str]:
    if "hook" in about:
        device = f"device {json.dumps(about['dev'])} " if "dev" in about else ""
        yield (
            f"type {about['type']} hook {about['hook']} {device}priority {about['prio']};"
            f" policy {about.get('policy', 'accept')};"
        )


def _set(about: _Json) -> Iterator[str]:
    kind = about["type"]
    kind = " . ".join(kind) if isinstance(kind, list) else kind
    flags = _words(about.get("flags", []))
    if "size" in about and "dynamic" not in flags:
        # Some versions of nft leave it out. A set that packets are added to always has a size.
        flags.append("dynamic")
    yield f"type {kind}{' : ' + _words(about['map'])[0] if 'map' in about else ''}"
    if flags:
        yield f"flags {','.join(flags)}"
    if "timeout" in about:
        yield f"timeout {about['timeout']}s"
    if about.get("elem"):
        yield f"elements = {_set_text(about['elem'], _OF_TYPE.get(kind, ''))}"


#: Fields whose values are written as the elements of a type.
_OF_TYPE = {"ifname": "iifname", "mark": "meta mark"}
_OBJECTS: dict[str, Callable[[_Json], Iterator[str]]] = {"chain": _chain, "set": _set, "map": _set}


def _rule(about: _Json) -> str:
    parts = []
    for each in about.get("expr", []):
        ((kind, content),) = each.items()
        write = _STATEMENTS.get(kind)
        try:
            parts.append(write(content) if write else _unknown(each))
        except (AttributeError, KeyError, StopIteration, TypeError, ValueError):
            parts.append(_unknown(each))
    if "comment" in about:
        parts.append(f'comment "{about["comment"]}"')
    return " ".join(parts)


def _unknown(each: _Json) -> str:
    """JSON in quotes, which are none of nft's: one word that nobody understands."""
    text = json.dumps(each).replace('"', "'")
    return f'json "{text}"'


_QUOTED = frozenset({"iifname", "oifname", "iif", "oif", "iifgroup", "oifgroup", "time"})
_MARKS = frozenset({"meta mark", "ct mark"})


def _payload(content: _Json) -> str:
    return f"{content['protocol']} {content['field']}"


def _meta(content: _Json) -> str:
    key = content["key"]
    return str(key) if key in _QUOTED - {"time"} else f"meta {key}"


def _ct(content: _Json) -> str:
    way = f"{content['dir']} " if "dir" in content else ""
    return f"ct {way}{content['key']}"


_FIELDS: dict[str, Callable[[_Json], str]] = {
    "payload": _payload,
    "meta": _meta,
    "ct": _ct,
    "fib": lambda content: f"fib {' . '.join(_words(content['flags']))} {content['result']}",
    "socket": lambda content: f"socket {content['key']}",
    "concat": lambda content: " . ".join(map(_expression, content)),
}


def _expression(each: _Json) -> str:
    """An expression that is no value."""
    ((kind, content),) = each.items()
    if kind in {"&", "|", "^"}:
        left, right = content
        field = _field_of(left)
        return f"{_operand(left, field)} {kind} {_operand(right, field)}"
    return _FIELDS[kind](content)


def _field_of(each: _Json) -> str:
    """The field that a computed value is about."""
    while isinstance(each, dict) and next(iter(each)) in {"&", "|", "^"}:
        each = next(iter(each.values()))[0]
    return _expression(each)


def _operand(each: _Json, field: str) -> str:
    return _expression(each) if isinstance(each, dict) else _value(each, field)


def _value(each: _Json, field: str) -> str:
    """A value as nft lists it for a field."""
    if isinstance(each, bool):
        return "exists" if each else "missing"
    if isinstance(each, int):
        return f"{each:#010x}" if field in _MARKS else str(each)
    if isinstance(each, str):
        quoted = field.removeprefix("meta ") in _QUOTED and not each.startswith("@")
        return f'"{each}"' if quoted else each
    if isinstance(each, list):
        return ",".join(_value(one, field) for one in each)
    ((kind, content),) = each.items()
    return _VALUES[kind](content, field)


def _set_text(elements: _Json, field: str = "") -> str:
    return f"{{ {', '.join(_element(each, field) for each in elements)} }}"


_VALUES: dict[str, Callable[[_Json, str], str]] = {
    "prefix": lambda content, _: f"{content['addr']}/{content['len']}",
    "range": lambda content, field: "-".join(_value(one, field) for one in content),
    "set": _set_text,
    "concat": lambda content, _: " . ".join(_value(one, "") for one in content),
    "elem": lambda content, field: _value(content["val"], field),
}


def _element(each: _Json, field: str) -> str:
    if isinstance(each, list):
        key, data = each
        return f"{_value(key, field)} : {_verdict(data) if isinstance(data, dict) else data}"
    return _value(each, field)


def _verdict(each: _Json) -> str:
    ((kind, content),) = each.items()
    return _STATEMENTS[kind](content) if kind in _VERDICTS else _value(each, "")


def _match(content: _Json) -> str:
    left, operator = content["left"], content["op"]
    if next(iter(left)) == "&" and _field_of(left) == "tcp flags":
        flags, mask = left["&"]
        asked, about = _value(content["right"], ""), _value(mask, "")
        return f"{_expression(flags)} {'!= ' * (operator == '!=')}{asked} / {about}"
    field = _expression(left)
    kept = "" if operator == "in" or (operator == "==" and "&" not in left) else f"{operator} "
    return (
        f"{field} {kept}{_value(content['right'], _field_of(left) if 'concat' not in left else '')}"
    )


def _vmap(content: _Json) -> str:
    field = _expression(content["key"])
    data = content["data"]
    return f"{field} vmap {data if isinstance(data, str) else _set_text(data['set'], field)}"


def _mangle(content: _Json) -> str:
    field = _expression(content["key"])
    return f"{field} set {_operand(content['value'], field)}"


def _nat(name: str) -> Callable[[_Json], str]:
    def write(content: _Json) -> str:
        if not content:
            return name
        family = f" {content['family']}" if "family" in content else ""
        address = _value(content["addr"], "") if "addr" in content else ""
        if ":" in address and ("port" in content or name == "tproxy"):
            address = f"[{address}]"
        port = f":{_value(content['port'], '')}" if "port" in content else ""
        where = f" to {address}{port}" if address or port else ""
        flags = f" {','.join(_words(content['flags']))}" if "flags" in content else ""
        return f"{name}{family}{where}{flags}"

    return write


def _reject(content: _Json) -> str:
    if not content:
        return "reject"
    kind, code = content["type"], content.get("expr")
    # nft lists the usual code of either family without a word.
    if (kind, code) == ("icmpx", "port-unreachable"):
        return "reject"
    return f"reject with {kind}" if code is None else f"reject with {kind} {code}"


def _log(content: _Json) -> str:
    if not content:
        return "log"
    quoted = {"prefix"}
    words = ["log"]
    for key, value in content.items():
        words += (key, f'"{value}"' if key in quoted else ",".join(_words(value)))
    return " ".join(words)


def _limit(content: _Json) -> str:
    if isinstance(content, str):
        return f'limit name "{content}"'
    over = "over " if content.get("inv") else ""
    unit = f" {content['rate_unit']}" if "rate_unit" in content else ""
    return f"limit rate {over}{content['rate']}{unit}/{content['per']}"


def _counter(content: _Json) -> str:
    if isinstance(content, str):
        return f'counter name "{content}"'
    return (
        f"counter packets {content['packets']} bytes {content['bytes']}" if content else "counter"
    )


def _set_statement(content: _Json) -> str:
    element = content["elem"]
    element = element["elem"]["val"] if "elem" in element else element
    return f"{content['op']} {content['set']} {{ {_expression(element)} }}"


def _plain(name: str) -> Callable[[_Json], str]:
    return lambda _: name


_VERDICTS = frozenset({"accept", "drop", "return", "continue", "jump", "goto"})
_STATEMENTS: dict[str, Callable[[_Json], str]] = {
    **{name: _plain(name) for name in ("accept", "drop", "return", "continue", "notrack")},
    "jump": lambda content: f"jump {content['target']}",
    "goto": lambda content: f"goto {content['target']}",
    "match": _match,
    "vmap": _vmap,
    "mangle": _mangle,
    "counter": _counter,
    "limit": _limit,
    "log": _log,
    "reject": _reject,
    "set": _set_statement,
    **{name: _nat(name) for name in ("redirect", "masquerade", "dnat", "snat", "tproxy")},
}
