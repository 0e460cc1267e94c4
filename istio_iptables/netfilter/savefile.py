"""iptables-save text to Ruleset and back: parse and render are inverse to each other."""

from __future__ import annotations

from itertools import zip_longest

from istio_iptables.errors import SaveFileError
from istio_iptables.netfilter.model import (
    Chain,
    Counters,
    Family,
    Match,
    Option,
    Rule,
    Ruleset,
    Table,
    Target,
    Term,
)

__all__ = ["parse", "parse_rule", "render", "render_table"]


def render(ruleset: Ruleset) -> str:
    """The text of *ruleset* as iptables-save prints it, and its comments where they stood."""
    lines: list[str] = []
    for table in ruleset.tables:
        lines += table.comments
        lines += render_table(table)
    lines += ruleset.comments
    return "".join(f"{line}\n" for line in lines)


def render_table(table: Table) -> list[str]:
    """The lines of one table, from ``*nat`` to ``COMMIT``."""
    lines = [f"*{table.name}"]
    lines += [f":{chain.name} {chain.policy or '-'} {chain.counters}" for chain in table.chains]
    for chain in table.chains:
        start = f"-A {chain.name}"
        for rule in chain.rules:
            counters = f"{rule.counters} " if rule.counters else ""
            text = rule.text
            lines.append(f"{counters}{start} {text}" if text else f"{counters}{start}")
    lines.append("COMMIT")
    return lines


def parse(text: str, family: Family) -> Ruleset:
    """The Ruleset that *text* describes; ``render`` of it gives *text* again.

    Rules keep their text word for word. Raises SaveFileError, which names the line, when
    *text* is not what iptables-save prints.
    """
    tables: list[Table] = []
    comments: list[str] = []
    current: _TableReader | None = None
    number = 0
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, start=1):
        if current is None:
            if line.startswith("*"):
                current = _TableReader(_table_name(line, number, tables), tuple(comments))
                comments.clear()
            elif not line.strip() or line.startswith("#"):
                comments.append(line)
            else:
                raise SaveFileError(number, f"expected a table such as *nat, found {line!r}")
        elif line == "COMMIT":
            tables.append(current.finish())
            current = None
        elif line.startswith(":"):
            current.add_chain(line, number)
        elif line.strip() and not line.startswith("#"):
            current.add_rule(line, number)
    if current is not None:
        raise SaveFileError(number, f"table {current.name} has no COMMIT")
    return Ruleset(family, tuple(tables), tuple(comments))


def _table_name(line: str, number: int, tables: list[Table]) -> str:
    name = line[1:].strip()
    if not name:
        raise SaveFileError(number, "a table without a name")
    if any(table.name == name for table in tables):
        raise SaveFileError(number, f"table {name} is here a second time")
    return name


class _TableReader:
    """Collects the chains and rules of one table while its lines go by."""

    def __init__(self, name: str, comments: tuple[str, ...]) -> None:
        self.name = name
        self._comments = comments
        self._heads: dict[str, Chain] = {}
        self._rules: dict[str, list[Rule]] = {}

    def add_chain(self, line: str, number: int) -> None:
        """Take ``:NAME POLICY [packets:bytes]``; the counters may be missing."""
        name, policy, counters, *rest = (*line[1:].split(), "", "", "")[:4]
        if not name or not policy or any(rest):
            raise SaveFileError(number, f"expected :CHAIN POLICY [packets:bytes], found {line!r}")
        if name in self._heads:
            raise SaveFileError(number, f"chain {name} is declared a second time")
        self._heads[name] = Chain(
            name,
            None if policy == "-" else policy,
            counters=_counters(counters, number) if counters else Counters(),
        )
        self._rules[name] = []

    def add_rule(self, line: str, number: int) -> None:
        """Take ``-A CHAIN …``, with or without counters before it."""
        counters = None
        if line.startswith("["):
            bracket, _, line = line.partition(" ")
            counters = _counters(bracket, number)
        append, _, rest = line.partition(" ")
        chain, _, text = rest.partition(" ")
        if append != "-A" or not chain:
            raise SaveFileError(number, f"expected -A CHAIN and a rule, found {line!r}")
        if chain not in self._rules:
            raise SaveFileError(number, f"chain {chain} was not declared")
        try:
            rule = parse_rule(text)
        except ValueError as error:
            raise SaveFileError(number, str(error)) from None
        self._rules[chain].append(rule if counters is None else rule._replace(counters=counters))

    def finish(self) -> Table:
        """The table, all of its lines taken."""
        chains = tuple(
            head._replace(rules=tuple(self._rules[name])) for name, head in self._heads.items()
        )
        return Table(self.name, chains, self._comments)


def _counters(text: str, number: int) -> Counters:
    packets, _, size = text[1:-1].partition(":")
    if text[:1] + text[-1:] != "[]" or not (_is_count(packets) and _is_count(size)):
        raise SaveFileError(number, f"expected counters such as [0:0], found {text!r}")
    return Counters(int(packets), int(size))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")


_FRAGMENT = "-f"

#: The conditions on the packet's header, and the fields of Rule they become.
_HEADER = {
    "-s": "source",
    "-d": "destination",
    "-i": "in_interface",
    "-o": "out_interface",
    "-p": "protocol",
    _FRAGMENT: "fragment",
}

#: The long names of parts, which people write and iptables-save never does.
_LONG_NAMES = {
    "--source": "-s",
    "--src": "-s",
    "--destination": "-d",
    "--dst": "-d",
    "--in-interface": "-i",
    "--out-interface": "-o",
    "--protocol": "-p",
    "--fragment": _FRAGMENT,
    "--match": "-m",
    "--jump": "-j",
    "--goto": "-g",
}

#: Options whose one value is any text: iptables-save prints a comment ``-j`` without quotes.
_FREE_TEXT = frozenset({"--comment", "--log-prefix", "--nflog-prefix", "--string"})

#: The words, beside those that start with ``--``, that end the values of an option.
_STARTS = frozenset({"!", "-m", "-j", "-g", *_HEADER})


def parse_rule(text: str) -> Rule:
    """The rule whose text behind ``-A CHAIN`` is *text*; it keeps that text word for word.

    Raises ValueError with the reason when the words make no rule.
    """
    return _RuleReader(text).read()


class _RuleReader:
    """Collects the parts of one rule while its words go by."""

    def __init__(self, text: str) -> None:
        self._text = text
        if '"' in text or "'" in text or "\\" in text:
            self._words, self._quoted = _split_quoted(text)
        else:
            self._words, self._quoted = text.split(), frozenset[int]()
        self._position = 0
        self._terms: dict[str, Term] = {}
        self._matches: list[tuple[str, list[Option]]] = []
        self._target: tuple[str, list[Option], bool] | None = None

    def read(self) -> Rule:
        """The rule that the words make."""
        words, quoted, negated = self._words, self._quoted, False
        while self._position < len(words):
            word = words[self._position]
            plain = self._position not in quoted
            self._position += 1
            if word == "!" and plain:
                if negated:
                    message = "two '!' in a row"
                    raise ValueError(message)
                negated = True
                continue
            if plain:
                word = _LONG_NAMES.get(word, word)
            if word.startswith("--") and plain:
                options = self._options()
                # Before 1.4.3, iptables wrote the sense behind the name: --dport ! 80.
                negated = self._negated_inside() or negated
                options.append(Option(word, self._option_values(word), negated))
            else:
                self._add_part(word, negated=negated)
            negated = False
        if negated:
            message = "'!' at the end"
            raise ValueError(message)
        term, target = self._terms.get, self._target
        return Rule(
            source=term("source"),
            destination=term("destination"),
            in_interface=term("in_interface"),
            out_interface=term("out_interface"),
            protocol=term("protocol"),
            fragment=term("fragment"),
            matches=tuple(Match(name, tuple(options)) for name, options in self._matches),
            target=None if target is None else Target(target[0], tuple(target[1]), target[2]),
            verbatim=self._text,
        )

    def _add_part(self, word: str, *, negated: bool) -> None:
        """Take a condition on the header, or the name of a match or of the target."""
        if word in _HEADER:
            if word == _FRAGMENT:
                value = ""
            else:
                negated = self._negated_inside() or negated
                value = self._value(word)
            self._terms[_HEADER[word]] = Term(value, negated)
        elif word == "-m":
            self._matches.append((self._value(word), []))
        elif word in {"-j", "-g"}:
            value = self._value(word)
            if self._target is not None:
                message = f"a second target: {value}"
                raise ValueError(message)
            self._target = (value, [], word == "-g")
        else:
            message = f"unexpected {word!r}"
            raise ValueError(message)

    def _negated_inside(self) -> bool:
        """Whether a ``!`` stands between a name and its value; it is taken."""
        at, words = self._position, self._words
        if (
            at + 1 < len(words)
            and words[at] == "!"
            and at not in self._quoted
            and (at + 1 in self._quoted or not _starts_option(words[at + 1]))
        ):
            self._position += 1
            return True
        return False

    def _value(self, word: str) -> str:
        if self._position == len(self._words):
            message = f"{word} has no value"
            raise ValueError(message)
        self._position += 1
        return self._words[self._position - 1]

    def _option_values(self, name: str) -> tuple[str, ...]:
        """The words up to the next option or part, all of them if they are in quotes."""
        words, quoted = self._words, self._quoted
        first = end = self._position
        if name in _FREE_TEXT:
            end = min(first + 1, len(words))
        while end < len(words) and (end in quoted or not _starts_option(words[end])):
            end += 1
        self._position = end
        return tuple(words[first:end])

    def _options(self) -> list[Option]:
        """The options of the part that is being read: the last one named so far.

        ``-p tcp --dport 80`` means the match of the protocol's name, as it does to iptables.
        """
        if self._target is not None:
            return self._target[1]
        if not self._matches:
            if "protocol" not in self._terms:
                message = f"{self._words[self._position - 1]} belongs to no match or target"
                raise ValueError(message)
            self._matches.append((self._terms["protocol"].value, []))
        return self._matches[-1][1]


def _starts_option(word: str) -> bool:
    return word.startswith("--") or word in _STARTS


def _split_quoted(text: str) -> tuple[list[str], frozenset[int]]:
    """The words of *text*, and the numbers of those in double quotes.

    iptables-save quotes with double quotes and puts a backslash before quotes and backslashes.
    """
    words: list[str] = []
    inside: set[int] = set()
    word: list[str] = []
    started = in_quotes = escaped = False
    for letter, following in zip_longest(text, text[1:]):
        if escaped:
            word.append(letter)
            escaped = False
        elif letter == "\\" and in_quotes and following is not None:
            escaped = True
        elif letter == '"':
            in_quotes = not in_quotes
            if in_quotes:
                inside.add(len(words))
            started = True
        elif letter.isspace() and not in_quotes:
            if word or started:
                words.append("".join(word))
            word, started = [], False
        else:
            word.append(letter)
    if in_quotes:
        message = "a double quote is not closed"
        raise ValueError(message)
    if word or started:
        words.append("".join(word))
    return words, frozenset(inside)
