"""Match module names against the patterns of a stranger's configuration.

PEFT runs them as regular expressions, ``(.*\\.)?(pattern)$`` from the name's start.
Here they are never run: most are plain names, and are looked up; of the rest a subset
is followed letter by letter, all its alternatives at once (Thompson, 1968), in time
that grows with the pattern's length times the name's.
"""

from __future__ import annotations

_MAX_PATTERNS = 5000
_MAX_CHARS = 500
_MAX_REPEATS = 4
# Instructions followed and lookups made for one configuration: some seconds' worth.
_MAX_STEPS = 10_000_000

_CLASSES = {
    "d": str.isdecimal,
    "w": lambda char: char.isalnum() or char == "_",
    "s": str.isspace,
}


class InvolvedPatternError(ValueError):
    """A pattern outside the subset that is followed, or too much of it."""


class _InvalidPatternError(ValueError):
    """A pattern that is no regular expression."""


class PatternTable:
    """The values of the first pattern that a module's name ends with.

    Parameters
    ----------
    patterns : dict of str to object
        Values by pattern, in the order in which they are tried.

    Raises
    ------
    InvolvedPatternError
        Too many patterns, too long ones, or such as are not followed.
    """

    def __init__(self, patterns):
        if len(patterns) > _MAX_PATTERNS:
            raise InvolvedPatternError(f"{len(patterns)} patterns")
        # Plain names: (length, positions of the dots, which match any character) ->
        # name with its dots masked -> order.
        self._plain, self._programs, self._values = {}, [], []
        self._n_steps = 0
        for order, (pattern, value) in enumerate(patterns.items()):
            self._values.append(value)
            if len(pattern) > _MAX_CHARS:
                raise InvolvedPatternError(pattern)
            if _is_plain(pattern):
                dots = tuple(i for i, char in enumerate(pattern) if char == ".")
                group = self._plain.setdefault((len(pattern), dots), {})
                group.setdefault(pattern, order)
                continue
            try:
                self._programs.append((order, _Parser(pattern).program))
            except _InvalidPatternError:
                continue

    def find(self, name):
        """Return the value of the first pattern that matches, or None."""
        self._count(4 * len(self._plain))
        best = min(self._plain_orders(name), default=None)
        for order, program in self._programs:
            if best is not None and order > best:
                break
            if self._matches(program, name):
                best = order
                break
        return None if best is None else self._values[best]

    def _matches(self, program, name):
        """Whether a program matches a name to its end, from its start or a dot on."""
        states = set()
        for position in range(len(name) + 1):
            if position == 0 or name[position - 1] == ".":
                states.add(0)
            states = _follow(program, states, position, len(name))
            self._count(len(states) + 1)
            if position == len(name):
                return len(program) in states
            char = name[position]
            states = {
                state + 1
                for state in states
                if state < len(program)
                and program[state][0] == "char"
                and program[state][1](char)
            }
        return False

    def _count(self, n_steps):
        self._n_steps += n_steps
        if self._n_steps > _MAX_STEPS:
            raise InvolvedPatternError("patterns times layers")

    def _plain_orders(self, name):
        for (length, dots), group in self._plain.items():
            start = len(name) - length
            if start < 0 or (start and name[start - 1] != "."):
                continue
            masked = list(name[start:])
            for i in dots:
                masked[i] = "."
            order = group.get("".join(masked))
            if order is not None:
                yield order


def _is_plain(pattern):
    return bool(pattern) and all(char.isalnum() or char in "_.-/: " for char in pattern)


class _Parser:
    """Turn a pattern into a program: a list of instructions.

    ``("char", test)``, ``("split", a, b)``, ``("start",)``, ``("end",)``; after the
    last comes the match. Groups are not repeated, but may be left out.
    """

    def __init__(self, pattern):
        self.pattern, self.at, self.n_repeats = pattern, 0, 0
        self.program = self._alternatives(0)
        if self.at < len(pattern):
            raise _InvalidPatternError(pattern)

    def _peek(self):
        return self.pattern[self.at : self.at + 1]

    def _take(self):
        char = self._peek()
        if not char:
            raise _InvalidPatternError(self.pattern)
        self.at += 1
        return char

    def _involved(self):
        return InvolvedPatternError(self.pattern)

    def _alternatives(self, depth):
        if depth > 20:
            raise self._involved()
        branches = [self._sequence(depth)]
        while self._peek() == "|":
            self.at += 1
            branches.append(self._sequence(depth))
        program = branches.pop()
        while branches:
            # Jumps are relative: ("split", 1, n) goes on, or n ahead.
            first = branches.pop()
            jump = ("split", len(program) + 1, len(program) + 1)
            program = [("split", 1, len(first) + 2), *first, jump, *program]
        return program

    def _sequence(self, depth):
        program = []
        while self._peek() and self._peek() not in "|)":
            atom, is_group = self._atom(depth)
            program += self._repeated(atom, is_group)
        return program

    def _repeated(self, atom, is_group):
        sign = self._peek()
        if not sign or sign not in "*+?{":
            return atom
        self.at += 1
        self.n_repeats += sign != "?"
        is_simple = not is_group and atom[0][0] == "char"
        if (
            sign == "{"
            or self.n_repeats > _MAX_REPEATS
            or (sign != "?" and not is_simple)
        ):
            raise self._involved()
        if self._peek() == "?":  # as few as possible: the same names match
            self.at += 1
        if self._peek() and self._peek() in "*+?{":
            raise self._involved()
        if sign == "?":
            return [("split", 1, len(atom) + 1), *atom]
        if sign == "+":
            return [*atom, ("split", -len(atom), 1)]
        return [("split", 1, len(atom) + 2), *atom, ("split", -len(atom), 1)]

    def _atom(self, depth):
        char = self._take()
        if char == "(":
            if self._peek() == "?":
                if self.pattern[self.at : self.at + 2] != "?:":
                    raise self._involved()
                self.at += 2
            group = self._alternatives(depth + 1)
            if self._take() != ")":
                raise _InvalidPatternError(self.pattern)
            return group, True
        if char in "*+?":
            raise _InvalidPatternError(self.pattern)
        if char in "^$":
            return [("start" if char == "^" else "end",)], False
        if char == ".":
            return [("char", lambda _: True)], False
        if char == "[":
            return [("char", self._set())], False
        if char == "\\":
            return [("char", self._escape())], False
        if char == "{":
            raise self._involved()
        return [("char", char.__eq__)], False

    def _escape(self):
        char = self._take()
        if char in _CLASSES:
            return _CLASSES[char]
        if char.lower() in _CLASSES:
            test = _CLASSES[char.lower()]
            return lambda other: not test(other)
        if char.isalnum():  # a reference to a group, a word's edge
            raise self._involved()
        return char.__eq__

    def _set(self):
        is_negated = self._peek() == "^"
        self.at += is_negated
        tests = []
        while not tests or self._peek() != "]":
            char = self._take()
            test = self._escape() if char == "\\" else char.__eq__
            if self._peek() == "-" and self.pattern[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                last = self._take()
                if char == "\\" or last == "\\" or last < char:
                    raise self._involved()
                test = _between(char, last)
            tests.append(test)
        self.at += 1
        return lambda char: any(test(char) for test in tests) != is_negated


def _between(first, last):
    return lambda char: first <= char <= last


def _follow(program, states, position, end):
    """Follow all instructions that take no character."""
    found, open_ends = set(), list(states)
    while open_ends:
        state = open_ends.pop()
        if state in found:
            continue
        found.add(state)
        if state == len(program):
            continue
        kind, *jumps = program[state]
        if kind == "split":
            open_ends += [state + jump for jump in jumps]
        elif (kind == "start" and position == 0) or (kind == "end" and position == end):
            open_ends.append(state + 1)
    return found
