"""iptables-save text to Ruleset and back: parse and render are inverse to each other."""

from __future__ import annotations

from functools import lru_cache
from operator import itemgetter

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
from istio_iptables.text import clip, excerpt, pattern
from istio_iptables.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, NoReturn

__all__ = ["LONG_NAMES", "Reader", "parse", "parse_rule", "render", "render_table"]


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
    """The Ruleset that *text* describes; rules keep their text word for word.

    ``render`` of it gives *text* again, but for comments inside a table, which are passed over,
    and for chains' counters, which are printed if they were left out. Raises SaveFileError, which
    names the line, when *text* is not what iptables-save prints.
    """
    reader = Reader()
    for line in text.removesuffix("\n").split("\n") if text else ():
        reader.take(line)
    return reader.ruleset(family)


#: No option takes a text with more line ends: a comment has at most 255 bytes.
_MOST_LINES = 256

#: How many rules are remembered, since files repeat them.
_MOST_KNOWN = 1024


class Reader:
    """Makes a ruleset of the lines of a text, one by one: a file may be larger than memory."""

    def __init__(self, before: int = 0) -> None:
        #: The line that was read last; a text may be part of a file, behind *before* others.
        self.number = before
        self._tables: list[Table] = []
        self._comments: list[str] = []
        self._table: _TableReader | None = None
        # A rule whose quoted comment goes on in the next line: iptables-save prints a line end.
        self._rule: list[str] = []

    @property
    def between_tables(self) -> bool:
        """Whether the next line belongs to no table."""
        return self._table is None

    @property
    def in_quotes(self) -> bool:
        """Whether the next line goes on with a quoted text, in which every letter counts."""
        return bool(self._rule)

    def take(self, line: str) -> None:
        """Read one line, without its end."""
        self.number += 1
        table = self._table
        if table is None:
            self._outside(line)
        elif self._rule:
            self._go_on(table, line)
        elif line == "COMMIT":
            self._tables.append(table.finish())
            self._table = None
        elif line.startswith(":"):
            table.add_chain(line, self.number)
        elif line.strip() and not line.startswith("#"):
            if '"' in line and is_open(line):
                self._rule.append(line)
            else:
                table.add_rule(line, self.number)

    def _outside(self, line: str) -> None:
        if line.startswith("*"):
            name = line[1:].strip()
            if not name:
                raise SaveFileError(self.number, "a table without a name")
            if " " in name or "\t" in name:
                raise SaveFileError(
                    self.number, f"expected a table such as *nat, found {excerpt(line)}"
                )
            if any(table.name == name for table in self._tables):
                raise SaveFileError(
                    self.number,
                    f"table {clip(name)} is here a second time: save each backend in a file of its own",
                )
            self._table = _TableReader(name, tuple(self._comments))
            self._comments.clear()
        elif not line.strip() or line.startswith("#"):
            self._comments.append(line)
        else:
            raise SaveFileError(
                self.number, f"expected a table such as *nat, found {excerpt(line)}{_known(line)}"
            )

    def _go_on(self, table: _TableReader, line: str) -> None:
        """Take a line of a rule that began in an earlier one."""
        self._rule.append(line)
        if len(self._rule) > _MOST_LINES:
            self._refuse_open()
        if not is_open(line, inside=True):
            first = self.number - len(self._rule) + 1
            rule, self._rule = "\n".join(self._rule), []
            table.add_rule(rule, first)

    def _refuse_open(self) -> NoReturn:
        raise SaveFileError(self.number - len(self._rule) + 1, "a double quote is not closed")

    def ruleset(self, family: Family) -> Ruleset:
        """What the lines described, all of them read."""
        if self._rule:
            self._refuse_open()
        if self._table is not None:
            raise SaveFileError(self.number, f"table {clip(self._table.name)} has no COMMIT")
        return Ruleset(family, tuple(self._tables), tuple(self._comments))


#: How the outputs start that are mistaken for iptables-save's, and what they are.
_OTHER_TEXTS = (
    (
        ("-P ", "-N ", "-A "),
        "this is what iptables -S or ip6tables -S prints: use iptables-save or ip6tables-save",
    ),
    (
        ("Chain ",),
        "this is what iptables -L or ip6tables -L prints: use iptables-save or ip6tables-save",
    ),
    (
        ("table ",),
        "this is what nft list ruleset prints: use iptables-nft-save or ip6tables-nft-save",
    ),
    (
        ("iptables", "ip6tables"),
        "this is an error of iptables, and no rules: had it NET_ADMIN?",
    ),
    (("{", "[", "---", "apiVersion:", "kind:"), "this is JSON or YAML, and no rules"),
)


def _known(line: str) -> str:
    """What *line* is the start of, if that can be told."""
    return next((f" ({what})" for starts, what in _OTHER_TEXTS if line.startswith(starts)), "")


class _TableReader:
    """Collects the chains and rules of one table while its lines go by."""

    def __init__(self, name: str, comments: tuple[str, ...]) -> None:
        self.name = name
        self._comments = comments
        self._heads: dict[str, Chain] = {}
        self._rules: dict[str, list[Rule]] = {}
        self._known: dict[str, Rule] = {}

    def add_chain(self, line: str, number: int) -> None:
        """Take ``:NAME POLICY [packets:bytes]``; the counters may be missing."""
        name, policy, counters, *rest = (*_split(line[1:]), "", "", "")[:4]
        if not name or not policy or any(rest):
            raise SaveFileError(
                number, f"expected :CHAIN POLICY [packets:bytes], found {excerpt(line)}"
            )
        if name in self._rules:
            raise SaveFileError(number, f"chain {clip(name)} is declared a second time")
        self._heads[name] = Chain(
            name,
            None if policy == "-" else policy,
            counters=_counters(counters, number) if counters else _NO_COUNTERS,
        )
        self._rules[name] = []

    def add_rule(self, line: str, number: int) -> None:
        """Take ``-A CHAIN …``, with or without counters before it."""
        bracket = ""
        if line.startswith("["):
            bracket, _, line = line.partition(" ")
            _counters(bracket, number)
        append, _, rest = line.partition(" ")
        chain, _, text = rest.partition(" ")
        if "\t" in append or "\t" in chain:
            append, chain, text = (*pattern(_TABBED).split(line, 2), "", "")[:3]
        if append != "-A" or not chain:
            raise SaveFileError(number, f"expected -A CHAIN and a rule, found {excerpt(line)}")
        rules = self._rules.get(chain)
        if rules is None:
            raise SaveFileError(number, f"chain {clip(chain)} was not declared")
        rule = None if bracket else self._known.get(text)
        if rule is None:
            try:
                rule = _read(text, bracket)
            except ValueError as error:
                raise SaveFileError(number, str(error)) from None
            if not bracket:
                if len(self._known) == _MOST_KNOWN:
                    self._known.clear()
                self._known[text] = rule
        rules.append(rule)

    def finish(self) -> Table:
        """The table, all of its lines taken."""
        heads, rules = self._heads, self._rules
        # One chain after the other: there is no moment at which all of them are here twice.
        for name in heads:
            if rules[name]:
                heads[name] = heads[name]._replace(rules=tuple(rules.pop(name)))
        return Table(self.name, tuple(heads.values()), self._comments)


_NO_COUNTERS = Counters()
#: What iptables-restore takes for the blank behind -A and a chain.
_TABBED = "[ \t]+"

#: The kernel counts in 64 bits.
_MOST_DIGITS = 20


def _counters(text: str, number: int) -> Counters:
    packets, _, size = text[1:-1].partition(":")
    if text[:1] + text[-1:] != "[]" or not (_is_count(packets) and _is_count(size)):
        raise SaveFileError(number, f"expected counters such as [0:0], found {excerpt(text)}")
    return _NO_COUNTERS if text == "[0:0]" else Counters(int(packets), int(size))


def _is_count(text: str) -> bool:
    return (
        text.isascii()
        and text.isdigit()
        and (text == "0" or text[0] != "0")
        and len(text) <= _MOST_DIGITS
    )


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
LONG_NAMES = {
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
    return Rule(*_parts(text), verbatim=text)


def _read(text: str, bracket: str = "") -> Rule:
    """The rule of *text*, with the counters that stood in brackets before it."""
    content = (text, bracket) if bracket else (text,)
    if not text or pattern(_PLAIN).fullmatch(f" {text}"):
        return _PlainRule(content)
    _parts(text)
    return _ReadRule(content)


_WORD = r"""(?![-!])[^\s"'\\]+"""
_QUOTED = r'"(?:[^"\\]|\\.)*+"'
_NO_OPTION = "|".join(name for name in LONG_NAMES if name.startswith("--"))
_OPTION = (
    rf"(?: !)? (?!(?:{_NO_OPTION})(?: |$))--[^\s\"'\\]+"
    rf"(?: (?:{_WORD}|{_QUOTED})(?![^ ]))*+"
)

#: Most rules are of this form, in which nothing can be wrong: their parts need not be read to
#: know that, which is half of the time that a large file takes.
_PLAIN = (
    rf"(?as)(?: (?:! )?-[sdiop] {_WORD})*+"
    rf"(?: -m {_WORD}(?:{_OPTION})*+)*+"
    rf"(?: -[jg] {_WORD}(?:{_OPTION})*+)?"
)


def _part(number: int) -> Any:  # noqa: ANN401 - a property of any type
    """A property of a rule that is read from its text."""

    def read(rule: Rule) -> object:
        return _parts(rule.text)[number]

    return property(read)


def _term(number: int) -> Any:  # noqa: ANN401 - a property of any type
    """A condition on the header that is read from the start of a plain rule's text."""

    def read(rule: Rule) -> Term | None:
        return _header(rule.text)[number]

    return property(read)


class _ReadRule(Rule):
    """A rule that keeps its text alone; its parts are read when they are asked for.

    A file may have millions of rules, whose parts would take twenty times its size. The tuple
    holds the text, and the counters' text if there were any.
    """

    __slots__ = ()

    def __new__(cls, content: tuple[str, ...]) -> _ReadRule:  # noqa: PYI034 - never inherited from
        return tuple.__new__(cls, content)

    text = verbatim = property(itemgetter(0))
    source = _part(0)
    destination = _part(1)
    in_interface = _part(2)
    out_interface = _part(3)
    protocol = _part(4)
    fragment = _part(5)
    matches = _part(6)
    target = _part(7)
    reason = property(lambda _: "")
    inserted = property(lambda _: False)

    @property
    def counters(self) -> Counters | None:
        """The counters that stood before the rule."""
        _, *bracket = tuple.__iter__(self)
        return _counters(str(*bracket), 0) if bracket else None

    def __iter__(self) -> Iterator[Any]:
        return iter((*_parts(self.text), "", False, self.counters, self.text))

    def __repr__(self) -> str:
        return repr(Rule(*self))

    def _replace(self, **changes: Any) -> Rule:  # type: ignore[override]  # noqa: ANN401
        return Rule(*self)._replace(**changes)


class _PlainRule(_ReadRule):
    """A rule of the plain form: its conditions on the header can be read without the rest.

    They are what most rules are passed over for.
    """

    __slots__ = ()

    source = _term(0)
    destination = _term(1)
    in_interface = _term(2)
    out_interface = _term(3)
    protocol = _term(4)
    fragment = property(lambda _: None)

    @property
    def target(self) -> Target | None:
        """The target; one without options ends the text."""
        text = self.text
        found = None if '"' in text else pattern(_TARGET).search(text)
        return _parts(text)[7] if found is None else Target(found[2], (), found[1] == "g")


_TERM = r"(?:(! )?-{} ([^ ]+) ?)?"
_TARGET = "(?:^| )-([jg]) ([^ ]+)$"
_TERMS = "".join(map(_TERM.format, "sdiop")) + "(?=$|-[mjg])"


@lru_cache(maxsize=16)
def _header(text: str) -> Sequence[Term | None]:
    """The conditions of a plain rule on the header, in the order of Rule's fields.

    A rule is asked for all of them, one after the other.
    """
    found = pattern(_TERMS).match(text)
    if found is None:
        # In another order than iptables-save's.
        return _parts(text)[:5]
    words = found.groups()
    return [
        None if value is None else Term(value, negated is not None)
        for negated, value in zip(words[::2], words[1::2], strict=True)
    ]


class _RuleReader:
    """Collects the parts of one rule while its words go by."""

    def __init__(self, text: str) -> None:
        if '"' in text:
            self._words, self._quoted = _split_quoted(text)
        else:
            self._words, self._quoted = _split(text), frozenset[int]()
        self._position = 0
        self._terms: dict[str, Term] = {}
        self._matches: list[tuple[str, list[Option]]] = []
        self._target: tuple[str, list[Option], bool] | None = None

    def read(self) -> _Parts:
        """The parts that the words make."""
        words, quote, negated = self._words, self._quoted, False
        while self._position < len(words):
            word = words[self._position]
            plain = self._position not in quote
            self._position += 1
            if word == "!" and plain:
                if negated:
                    message = "two '!' in a row"
                    raise ValueError(message)
                negated = True
                continue
            if plain:
                word = LONG_NAMES.get(word, word)
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
        return (
            term("source"),
            term("destination"),
            term("in_interface"),
            term("out_interface"),
            term("protocol"),
            term("fragment"),
            tuple(Match(name, tuple(options)) for name, options in self._matches),
            None if target is None else Target(target[0], tuple(target[1]), target[2]),
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
                message = f"a second target: {clip(value)}"
                raise ValueError(message)
            self._target = (value, [], word == "-g")
        else:
            message = f"unexpected {excerpt(word)}"
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
        words, quote = self._words, self._quoted
        first = end = self._position
        if name in _FREE_TEXT:
            end = min(first + 1, len(words))
        while end < len(words) and (end in quote or not _starts_option(words[end])):
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
                word = clip(self._words[self._position - 1])
                message = f"{word} belongs to no match or target"
                raise ValueError(message)
            self._matches.append((self._terms["protocol"].value, []))
        return self._matches[-1][1]


def _starts_option(word: str) -> bool:
    return word.startswith("--") or word in _STARTS


def _split(text: str) -> list[str]:
    """The words between blanks and tabs, as iptables-restore reads them.

    Python's own split also parts at letters that may be in a chain's name, such as U+2028.
    """
    if text.isprintable():
        return text.split()
    return [word for word in text.replace("\t", " ").split(" ") if word]


#: Where a quoted text starts: iptables-save writes the quote at the start of a word. Inside a
#: word it is a letter, as in the name of a chain.
_START = r'(?<![^ \t])"'
#: The rest of a quoted text, with the quote at its end.
_REST = r'(?s)(?:[^"\\]|\\.)*+"'


def is_open(text: str, *, inside: bool = False) -> bool:
    """Whether a quoted text is open at the end of *text*; *inside*: at its start one is."""
    position = 0
    while True:
        if not inside:
            start = pattern(_START).search(text, position)
            if start is None:
                return False
            position = start.end()
        rest = pattern(_REST).match(text, position)
        if rest is None:
            return True
        position, inside = rest.end(), False


def _split_quoted(text: str) -> tuple[list[str], frozenset[int]]:
    """The words of *text*, and the numbers of those in double quotes.

    iptables-save quotes with double quotes and puts a backslash before quotes and backslashes.
    """
    words: list[str] = []
    quote: set[int] = set()
    position = 0
    while start := pattern(_START).search(text, position):
        words += _split(text[position : start.start()])
        rest = pattern(_REST).match(text, start.end())
        if rest is None:
            message = "a double quote is not closed"
            raise ValueError(message)
        tail = pattern(_TAIL).match(text, rest.end())
        position = tail.end() if tail else rest.end()
        quote.add(len(words))
        inside = pattern(_ESCAPED).sub(r"\1", text[start.end() : rest.end() - 1])
        words.append(inside + text[rest.end() : position])
    return words + _split(text[position:]), frozenset(quote)


_TAIL = r"[^ \t]*"
_ESCAPED = r"(?s)\\(.)"


_Parts = tuple[
    Term | None,
    Term | None,
    Term | None,
    Term | None,
    Term | None,
    Term | None,
    tuple[Match, ...],
    Target | None,
]


@lru_cache(maxsize=1 << 15)
def _parts(text: str) -> _Parts:
    """The parts of a rule by its text, kept for as many rules as most machines have."""
    return _RuleReader(text).read()
