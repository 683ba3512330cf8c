"""``pem hex raw base64 string``: how a template turns a secret into text.

Source: protocol, section 5.7. Each fails on a missing secret, a value of the wrong kind and an empty value.
"""

from __future__ import annotations

import base64
from typing import Final

from marblerun.manifest.templates.budget import TemplateFailure
from marblerun.manifest.templates.data import PRIVATE_KEY, PUBLIC_KEY, CertificateRecord, SecretRecord
from marblerun.manifest.templates.unicode import brief
from marblerun.manifest.templates.values import Slice, Value, type_name
from marblerun.secrets.model import SecretType
from marblerun.wire import pem

_PEM_LABELS: Final = {PRIVATE_KEY: "PRIVATE KEY", PUBLIC_KEY: "PUBLIC KEY"}


def encode_pem(value: Value) -> bytes:
    """A PEM block around ``.Cert``, ``.Public`` or ``.Private``, as Go writes it: 64 columns, LF, LF at the end."""
    if isinstance(value, CertificateRecord):
        return pem.encode_pem(_filled(value.der), "CERTIFICATE").encode()
    if isinstance(value, Slice) and value.type_name in _PEM_LABELS:
        return pem.encode_pem(_filled(value.content() or b""), _PEM_LABELS[value.type_name]).encode()
    if isinstance(value, SecretRecord):
        raise TemplateFailure("pem of a whole secret: name its .Cert, .Public or .Private")
    raise _wrong_kind("pem", value)


def encode_hex(value: Value) -> bytes:
    """Lower-case hexadecimal of the value's bytes."""
    return _content("hex", value).hex().encode()


def encode_base64(value: Value) -> bytes:
    """Standard base64 of the value's bytes, padded, on one line."""
    return base64.b64encode(_content("base64", value))


def encode_raw(value: Value) -> bytes:
    """The value's bytes themselves."""
    return _content("raw", value)


def encode_string(value: Value) -> bytes:
    """The text of a whole ``plain`` secret; refused if it has NUL bytes, which end an environment variable."""
    if not isinstance(value, SecretRecord):
        raise _wrong_kind("string", value)
    if value.secret.type != SecretType.PLAIN:
        raise TemplateFailure(f"string works for secrets of type plain only, this is {brief(value.secret.type)}")
    text = _filled(value.secret.public)
    if b"\0" in text:
        raise TemplateFailure("string: the secret has NUL bytes, which an environment variable cannot hold")
    return text


def _content(function: str, value: Value) -> bytes:
    """A whole secret's public part, a certificate's DER, or plain bytes; never empty."""
    if isinstance(value, SecretRecord):
        return _filled(value.secret.public)
    if isinstance(value, CertificateRecord):
        return _filled(value.der)
    if isinstance(value, Slice) and (content := value.content()) is not None:
        return _filled(content)
    raise _wrong_kind(function, value)


def _filled(data: bytes) -> bytes:
    if not data:
        raise TemplateFailure("the secret or this part of it has no value")
    return data


def _wrong_kind(function: str, value: Value) -> TemplateFailure:
    if value is None:
        return TemplateFailure(f"{function}: there is no such secret")
    return TemplateFailure(f"{function} cannot be used on a value of type {type_name(value)}")
