"""Templates made at random from Go's grammar, about half of which run.

A template is made from one number: a strategy per production would shrink better, but makes some four a second, and
what is wanted here is many.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import strategies as st

STRINGS = [
    '""', '"a"', '"ab"', '"key"', '"word"', '"<&>"', r"`r\n`", r'"é\n"', r'"\xff"', '"missing"', '"日本"', r'"\u2028"',
    '"a=b&c"', '"Zz~-_"', '"it\'s"',
]  # fmt: skip
FORMATS = [
    '"%d"', '"%v %[1]v"', '"%5.2f|"', '"%-6q|"', '"%x"', '"%#v"', '"%s%%"', '"%T"', '"%+d %08.3f"', '"%*d"', '"%z"',
    '"%U %c"', '"%6.3v|"', '"%+q"', '"%#x"', '"%t"', '"%o|%O|%b"', '"%e|%G"', '"%v"', '"%v|%v"', '"%s"', '"%06d|%-6d|"',
    '"%.1v"', '"%[2]v"', '"%!"', '"%#q"', '"%X"', '"%3c|"', '"%#.3g"', '"% x"', '"%+v"', '"% d"', '"%.3s"', '"%w"',
    '"%.*f"', '"%x|%X"',
]  # fmt: skip
INTEGERS = ["0", "1", "2", "3", "5", "-1", "255", "0x1F", "0o17", "017", "0b11", "1_0", "'a'", "'é'"]
INTEGER_VALUES = ["$.Secrets.key.Size", "(len `abc`)", "(index `abc` 1)", "$.Secrets.cert.ValidFor"]
OTHER_NUMBERS = ["1.5", "2.0", "1e3", "1e6", "1e21", "123456.789", ".25", "0x1p-2", "2i", "1+2i", "1e-7"]
SLICES = [
    "$.Secrets.word.Public", "$.Secrets.key.Private", "$.Secrets.cert.Cert.DNSNames", "$.Secrets.unset.Public",
    "$.Secrets.utf.Public", "(slice $.Secrets.word.Public 1 3)", "$.Secrets.dry.Cert.Raw",
]  # fmt: skip
PLAIN = [
    "$.Secrets.key.Type",
    "$.Secrets.key.Shared",
    "$.Secrets.missing",
    "$.Secrets.missing.x",
    "nil",
    "true",
    "false",
]
WHOLE = ["$.Secrets.key", "$.Previous.Secrets.word", "$.Secrets.cert.Cert", ".", "$", "$.Secrets", "$.Secrets.word"]
RANGES = ["3", "$.Secrets.word.Public", "$.Previous.Secrets", "0", "$.Secrets.cert.Cert.DNSNames", "$.Secrets.missing"]
WRONG = [
    "089",
    "1e",
    "9223372036854775808",
    ".x",
    ".Secrets.x",
    "$u",
    "foo",
    "..",
    "`a`.x",
    "($.Secrets.key.Size).x",
    "''",
]
ANYTHING = ["print", "print", "printf", "printf", "printf", "println", "html", "js", "urlquery", "and", "or", "not"]
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]
ENCODERS = ["pem", "hex", "hex", "base64"]
VALUES: list[Sequence[str]] = [STRINGS, FORMATS, INTEGERS, INTEGER_VALUES, OTHER_NUMBERS, SLICES, PLAIN]


class Generator:
    """Makes one template; ``depth`` bounds how much is put into each other."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.variables: list[str] = []
        self.rooted = True
        """Whether ``$`` is the template data here."""
        self.sloppy = 0.1 if self.chance(0.3) else 0.005
        """How often something is put where it does not belong."""

    def pick(self, choices: Sequence[str]) -> str:
        choice = self.random.choice(choices)
        return choice if self.rooted or "$" not in choice or choice in self.variables else "`abc`"

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def template(self) -> str:
        text = ""
        for name in ("$x", "$y", "$i"):
            if self.chance(0.5):
                text += f"{{{{{name} := {self.value()}}}}}"
                self.variables.append(name)
        text += self.body(3, least=1)
        self.variables, self.rooted = [], False
        return text + "".join(
            f'{{{{define "{name}"}}}}{self.body(1)}{{{{end}}}}' for name in ("t", "u") if not self.chance(self.sloppy)
        )

    # Blocks

    def body(self, depth: int, least: int = 0) -> str:
        return "".join(self.node(depth) for _ in range(self.random.randint(least, 2)))

    def node(self, depth: int) -> str:
        if depth == 0 or self.chance(0.4):
            return self.pick(["", "a", " ", " b\n ", "}}", "{ ", "é"]) if self.chance(0.3) else self.action()
        inside = depth - 1
        known = list(self.variables)
        match self.random.randrange(8):
            case 0 | 1 | 2:
                head = self.ranged()
                text = f"{head}{self.body(inside)}{self.leave()}{self.body(inside)}{self.end(inside)}"
            case 3 | 4 | 5:
                text = self.conditional(self.pick(["if", "with"]), inside)
            case 6:
                text = f'{{{{template "{self.pick(["t", "u"])}" {self.value()}}}}}'
            case _:
                head = f'{{{{block "{self.pick("bcdefghij")}" {self.value()}}}}}'
                outside, self.rooted, self.variables = self.rooted, False, []
                text = head + self.body(inside) + "{{end}}"
                self.rooted = outside
        self.variables = known
        return text

    def conditional(self, keyword: str, depth: int) -> str:
        text = f"{{{{{keyword} {self.declared()}}}}}{self.body(depth)}"
        if self.chance(0.3):
            text += f"{{{{else {keyword} {self.declared()}}}}}{self.body(depth)}"
        return text + self.end(depth)

    def end(self, depth: int) -> str:
        return ("{{else}}" + self.body(depth) if self.chance(0.4) else "") + "{{end}}"

    def leave(self) -> str:
        if self.chance(0.6):
            return ""
        word = self.pick(["break", "continue"])
        return self.pick([f"{{{{{word}}}}}", f"{{{{if {self.value()}}}}}{{{{{word}}}}}{{{{end}}}}"])

    def ranged(self) -> str:
        over = self.pick(RANGES) if not self.chance(self.sloppy) else self.value()
        match self.random.randrange(4):
            case 0:
                self.variables.append("$x")
                return f"{{{{range $x := {over}}}}}"
            case 1 if over not in ("0", "3"):
                self.variables += ["$i", "$x"]
                return f"{{{{range $i, $x := {over}}}}}"
            case 2 if self.variables:
                return f"{{{{range {self.pick(self.variables)} = {over}}}}}"
        return f"{{{{range {over}}}}}"

    # Expressions

    def action(self) -> str:
        return self.pick(["{{", "{{", "{{- "]) + self.declared() + self.pick(["}}", "}}", " -}}"])

    def declared(self) -> str:
        value = self.pipeline(2)
        if self.chance(0.15):
            name = self.random.choice(["$x", "$y", "$i"])
            assigns = name in self.variables and self.chance(0.5)
            self.variables.append(name)
            return f"{name} {'=' if assigns else ':='} {value}"
        return value

    def pipeline(self, depth: int) -> str:
        commands = [self.command(depth)]
        while self.chance(0.15):
            commands.append(
                self.pick(["print", "printf `%v`", "html", "js", "urlquery", "not", "len", "and 1", "eq `a`"])
            )
        return " | ".join(commands)

    def command(self, depth: int) -> str:
        match self.random.randrange(10):
            case 0 | 1 | 2:
                return self.value(depth)
            case 3:
                kind = self.random.choice([STRINGS, [*INTEGERS, *INTEGER_VALUES], ["1.5", "2.0", ".25"]])
                return f"{self.pick(COMPARISONS)} {self.pick(kind)} {self.pick(kind)}"
            case 4:
                return f"{self.pick(COMPARISONS)} {self.value(depth)} {self.value(depth)}" if self.chance(0.2) else "1"
            case 5:
                return f"{self.pick(['index', 'slice'])} {self.pick([*SLICES, '`abcdef`'])} {self.pick(INTEGERS[:4])}"
            case 6:
                return f"len {self.pick([*SLICES, *STRINGS, '$.Secrets'])}"
            case 7:
                return f"{self.pick(ENCODERS)} {self.pick([*SLICES, *WHOLE])}"
        function = self.pick(ANYTHING)
        values = [self.value(depth) for _ in range(self.random.randint(1, 3))]
        if function == "not":
            del values[1:]
        if function == "printf":
            values.insert(0, self.pick(FORMATS))
        return " ".join([function, *values])

    def value(self, depth: int = 0) -> str:
        if self.chance(self.sloppy):
            return self.pick([*WRONG, *WHOLE])
        if depth > 0 and self.chance(0.2):
            return f"({self.pipeline(depth - 1)})"
        if self.variables and self.chance(0.25):
            return self.pick(self.variables)
        return self.pick(self.random.choice(VALUES))


TEMPLATES: st.SearchStrategy[str] = st.integers(0, 2**32 - 1).map(lambda seed: Generator(seed).template())
