"""Template text to tokens, by the rules of Go's text/template/parse package.

The whole text becomes a list at once. Go scans on demand, but reads to the end before it runs anything, so a text
either has only good tokens or is refused in both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from marblerun.manifest.templates.budget import MAX_TEMPLATE_TOKENS, TemplateFailure
from marblerun.manifest.templates.unicode import brief, is_word

LEFT: Final = "{{"
RIGHT: Final = "}}"
SPACES: Final = " \t\r\n"


class Kind(Enum):
    """Kinds of token."""

    TEXT = auto()
    LEFT_DELIM = auto()
    RIGHT_DELIM = auto()
    SPACE = auto()
    ASSIGN = auto()
    DECLARE = auto()
    PIPE = auto()
    LEFT_PAREN = auto()
    RIGHT_PAREN = auto()
    CHAR = auto()
    """Any other printable ASCII character; only the comma means something."""
    STRING = auto()
    RAW_STRING = auto()
    CHAR_CONSTANT = auto()
    NUMBER = auto()
    COMPLEX = auto()
    BOOL = auto()
    NIL = auto()
    DOT = auto()
    FIELD = auto()
    VARIABLE = auto()
    IDENTIFIER = auto()
    KEYWORD = auto()
    EOF = auto()


@dataclass(frozen=True, slots=True)
class Token:
    """A token, its source text, and where it starts (character offset in the template)."""

    kind: Kind
    text: str
    position: int

    def describe(self) -> str:
        """The token as an error message names it."""
        if self.kind is Kind.EOF:
            return "the end of the template"
        if self.kind is Kind.KEYWORD:
            return f"<{self.text}>"
        return brief(self.text)


_KEYWORDS: Final = frozenset(
    {"block", "break", "continue", "define", "else", "end", "if", "range", "template", "with"},
)
_SIMPLE: Final = {"=": Kind.ASSIGN, "|": Kind.PIPE}

_CLOSE = re.compile(r"[ \t\r\n]-\}\}|\}\}")
_SPACE_RUN = re.compile(r"[ \t\r\n]+")
_TRIM_LEFT = re.compile(r"-[ \t\r\n]")
_WORD = re.compile(r"\w*")
# Possessive, so that a string constant of megabytes leaves no trail of positions to come back to.
_STRING = re.compile(r'"(?:[^"\\\n]++|\\[^\n])*+"')
_CHARACTER = re.compile(r"'(?:[^'\\\n]++|\\[^\n])*+'")
_NUMBER = re.compile(
    r"[+-]?(?:"
    r"0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?"
    r"|0[oO][0-7_]*(?:\.[0-7_]*)?"
    r"|0[bB][01_]*(?:\.[01_]*)?"
    r"|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?"
    r")i?"
)


def lex(text: str) -> list[Token]:
    """The tokens of a template, with one EOF at the end; comments are left out.

    Raises:
        TemplateFailure: an action, comment, string or parenthesis is not closed, a character has no meaning in an
            action, or there are more than ``MAX_TEMPLATE_TOKENS`` tokens.
    """
    return _Lexer(text).run()


class _Lexer:
    """One pass over one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.parentheses = 0
        self.tokens: list[Token] = []
        self.extra = 0
        """Comments and escape sequences, which cost time but make no tokens."""

    def run(self) -> list[Token]:
        while self.position < len(self.text):
            start = self.text.find(LEFT, self.position)
            if start < 0:
                self.emit(Kind.TEXT, len(self.text))
                break
            self.text_before(start)
            if self.open_action():
                self.inside_action()
        self.tokens.append(Token(Kind.EOF, "", len(self.text)))
        return self.tokens

    def emit(self, kind: Kind, end: int) -> None:
        """Make the text up to ``end`` a token."""
        self.require_room()
        self.tokens.append(Token(kind, self.text[self.position : end], self.position))
        self.position = end

    def require_room(self) -> None:
        if len(self.tokens) + self.extra >= MAX_TEMPLATE_TOKENS:
            self.fail(f"more than {MAX_TEMPLATE_TOKENS} tokens, comments and escape sequences")

    def text_before(self, start: int) -> None:
        """Emit the text before an action, trimmed if the action says so."""
        end = start
        if _TRIM_LEFT.match(self.text, start + len(LEFT)):
            end = self.position + len(self.text[self.position : start].rstrip(SPACES))
        if end > self.position:
            self.emit(Kind.TEXT, end)
        self.position = start

    def open_action(self) -> bool:
        """Step over the left delimiter; false if what it opened was a comment, which is skipped as a whole."""
        begin = self.position + len(LEFT)
        after_marker = begin + 2 if _TRIM_LEFT.match(self.text, begin) else begin
        if self.text.startswith("/*", after_marker):
            self.skip_comment(after_marker)
            return False
        self.emit(Kind.LEFT_DELIM, begin)
        self.position = after_marker
        self.parentheses = 0
        return True

    def skip_comment(self, begin: int) -> None:
        self.require_room()
        self.extra += 1
        end = self.text.find("*/", begin + 2)
        if end < 0:
            raise TemplateFailure("unclosed comment", position=begin)
        close = _CLOSE.match(self.text, end + 2)
        if close is None:
            raise TemplateFailure("a comment must fill its whole action", position=end)
        self.position = close.end()
        if len(close.group()) > len(RIGHT):
            self.skip_spaces()

    def skip_spaces(self) -> None:
        if run := _SPACE_RUN.match(self.text, self.position):
            self.position = run.end()

    def inside_action(self) -> None:
        """Emit the tokens of one action, its right delimiter included."""
        while True:
            close = _CLOSE.match(self.text, self.position)
            if close is not None:
                if self.parentheses:
                    raise TemplateFailure("unclosed left parenthesis", position=self.position)
                self.emit(Kind.RIGHT_DELIM, close.end())
                if len(close.group()) > len(RIGHT):
                    self.skip_spaces()
                return
            if self.position >= len(self.text):
                raise TemplateFailure("unclosed action", position=self.tokens[-1].position)
            self.element(self.text[self.position])

    def element(self, char: str) -> None:
        """Emit the token that starts with ``char``."""
        if char in SPACES:
            self.spaces()
        elif char in _SIMPLE:
            self.emit(_SIMPLE[char], self.position + 1)
        elif char == ":":
            if not self.text.startswith(":=", self.position):
                self.fail("expected := after a variable")
            self.emit(Kind.DECLARE, self.position + 2)
        elif char in "\"'`":
            self.quoted(char)
        elif char == "$":
            self.name(Kind.VARIABLE, Kind.VARIABLE)
        elif char == "." and self.text[self.position + 1 : self.position + 2] not in tuple("0123456789"):
            self.name(Kind.FIELD, Kind.DOT)
        elif char in "+-.0123456789":
            self.number()
        elif is_word(char):
            self.word()
        elif char in "()":
            self.parenthesis(char)
        elif " " <= char <= "~":
            self.emit(Kind.CHAR, self.position + 1)
        else:
            self.fail(f"unrecognized character U+{ord(char):04X} in an action")

    def fail(self, message: str) -> None:
        raise TemplateFailure(message, position=self.position)

    def spaces(self) -> None:
        """Emit a run of spaces, without the one that belongs to a trimming right delimiter."""
        run = _SPACE_RUN.match(self.text, self.position)
        assert run is not None
        end = run.end()
        self.emit(Kind.SPACE, end - 1 if self.text.startswith("-}}", end) else end)

    def quoted(self, quote: str) -> None:
        if quote == "`":
            end = self.text.find("`", self.position + 1) + 1
            if not end:
                self.fail("unterminated raw quoted string")
            self.emit(Kind.RAW_STRING, end)
            return
        found = (_STRING if quote == '"' else _CHARACTER).match(self.text, self.position)
        if found is None:
            raise TemplateFailure(
                "unterminated quoted string" if quote == '"' else "unterminated character constant",
                position=self.position,
            )
        self.extra += self.text.count("\\", self.position, found.end())
        self.emit(Kind.STRING if quote == '"' else Kind.CHAR_CONSTANT, found.end())

    def word_end(self, start: int) -> int:
        """Where the run of name characters at ``start`` ends."""
        found = _WORD.match(self.text, start)
        assert found is not None
        # Python counts characters such as the superscript two as part of a word, Go does not.
        strangers = [] if found.group().isascii() else [char for char in set(found.group()) if not is_word(char)]
        return min((self.text.index(char, start) for char in strangers), default=found.end())

    def at_terminator(self, end: int) -> bool:
        """Whether a name may end here."""
        following = self.text[end : end + 1]
        return not following or following in SPACES or following in ".,|:)(" or self.text.startswith(RIGHT, end)

    def name(self, named: Kind, bare: Kind) -> None:
        """Emit ``.name`` or ``$name``, or the dot or dollar alone."""
        begin = self.position + 1
        if self.at_terminator(begin):
            self.emit(bare, begin)
            return
        end = self.word_end(begin)
        self.require_terminator(end)
        self.emit(named, end)

    def word(self) -> None:
        end = self.word_end(self.position)
        self.require_terminator(end)
        word = self.text[self.position : end]
        if word in _KEYWORDS:
            kind = Kind.KEYWORD
        elif word == "nil":
            kind = Kind.NIL
        elif word in ("true", "false"):
            kind = Kind.BOOL
        else:
            kind = Kind.IDENTIFIER
        self.emit(kind, end)

    def require_terminator(self, end: int) -> None:
        if not self.at_terminator(end):
            raise TemplateFailure(
                f"bad character {self.text[end]!a} after a name; names with other characters need "
                'index, for example index .Secrets "my-name"',
                position=end,
            )

    def number(self) -> None:
        end = self.number_end(self.position)
        kind = Kind.NUMBER
        if self.text[end : end + 1] in ("+", "-"):
            end = self.number_end(end)
            kind = Kind.COMPLEX
            if self.text[end - 1] != "i":
                self.fail("bad number syntax")
        self.emit(kind, end)

    def number_end(self, start: int) -> int:
        found = _NUMBER.match(self.text, start)
        assert found is not None
        end = found.end()
        if end < len(self.text) and is_word(self.text[end]):
            self.fail(f"bad number syntax: {brief(self.text[start : end + 1])}")
        return end

    def parenthesis(self, char: str) -> None:
        if char == "(":
            self.parentheses += 1
            self.emit(Kind.LEFT_PAREN, self.position + 1)
            return
        self.parentheses -= 1
        if self.parentheses < 0:
            self.fail("unexpected right parenthesis")
        self.emit(Kind.RIGHT_PAREN, self.position + 1)
