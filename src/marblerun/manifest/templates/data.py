"""What stands under the dot: the secrets and the mesh's own credentials, in the reference's shape.

Source: protocol, section 5.7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Final

from marblerun.manifest.templates.budget import CERTIFICATE_STEPS
from marblerun.manifest.templates.certificate import certificate_field
from marblerun.manifest.templates.values import Dictionary, Record, Uint, Value, byte_slice
from marblerun.secrets.model import Secret

PRIVATE_KEY: Final = "manifest.PrivateKey"
PUBLIC_KEY: Final = "manifest.PublicKey"
_EMPTY: Final = Secret(type="")


@dataclass(frozen=True, slots=True)
class ReservedSecrets:
    """``.MarbleRun``: the mesh's certificates and the Marble's own key. Fields nobody may use are left empty.

    ``root_ca`` is the Marble root; only ``marble_cert`` has public and private parts.
    """

    root_ca: Secret
    marble_cert: Secret
    coordinator_root: Secret
    coordinator_intermediate: Secret


@dataclass(frozen=True)
class TemplateData:
    """What one Marble's templates may read.

    The mappings may be lazy: ``mapping[name]`` is asked for a name only when a template reaches it, and KeyError says
    that there is no such secret. Length and iteration are used only by templates that ask for all secrets, for example
    ``range .Secrets``.
    """

    marblerun: ReservedSecrets
    secrets: Mapping[str, Secret]
    previous: Mapping[str, Secret]

    @cached_property
    def root(self) -> Record:
        """The value a template starts with as its dot; made once for all templates of a Marble."""
        return _root_of(self)


class SecretRecord(Record):
    """A secret as templates see it."""

    __slots__ = ("secret",)
    type_name: ClassVar[str] = "manifest.Secret"
    _FIELDS: ClassVar[Mapping[str, Callable[[Secret], Value]]] = {
        "Type": lambda secret: secret.type.encode("utf-8", "surrogateescape"),
        "Size": lambda secret: Uint(secret.size),
        "Shared": lambda secret: secret.shared,
        "UserDefined": lambda secret: secret.user_defined,
        "ValidFor": lambda secret: Uint(secret.valid_for),
        "Cert": lambda secret: CertificateRecord(secret.certificate),
        "Private": lambda secret: byte_slice(secret.private, PRIVATE_KEY),
        "Public": lambda secret: byte_slice(secret.public, PUBLIC_KEY),
    }

    def __init__(self, secret: Secret) -> None:
        self.secret = secret

    def get(self, name: str) -> Value:
        """The field's value; KeyError if secrets have none of this name."""
        return self._FIELDS[name](self.secret)


class CertificateRecord(Record):
    """A certificate, with the fields of Go's ``x509.Certificate`` that are plain data."""

    __slots__ = ("der",)
    type_name: ClassVar[str] = "manifest.Certificate"
    read_steps: ClassVar[int] = CERTIFICATE_STEPS

    def __init__(self, der: bytes) -> None:
        self.der = der

    def get(self, name: str) -> Value:
        """The field's value, read from the DER; KeyError if it is not one of those served here."""
        return certificate_field(self.der, name)


class _Fixed(Record):
    """A struct whose fields are known from the start."""

    __slots__ = ("_fields",)

    def __init__(self, **fields: Value) -> None:
        self._fields = fields

    def get(self, name: str) -> Value:
        return self._fields[name]


class _Root(_Fixed):
    __slots__ = ()
    type_name: ClassVar[str] = "manifest.TemplateData"


class _Reserved(_Fixed):
    __slots__ = ()
    type_name: ClassVar[str] = "manifest.ReservedSecrets"


class _Previous(_Fixed):
    __slots__ = ()
    type_name: ClassVar[str] = "manifest.PreviousSecrets"


def _root_of(data: TemplateData) -> Record:
    reserved = data.marblerun
    return _Root(
        MarbleRun=_Reserved(
            RootCA=SecretRecord(reserved.root_ca),
            MarbleCert=SecretRecord(reserved.marble_cert),
            CoordinatorRoot=SecretRecord(reserved.coordinator_root),
            CoordinatorIntermediate=SecretRecord(reserved.coordinator_intermediate),
        ),
        Secrets=_dictionary(data.secrets),
        Previous=_Previous(Secrets=_dictionary(data.previous)),
    )


def _dictionary(secrets: Mapping[str, Secret]) -> Dictionary:
    return Dictionary(secrets, partial(_wrap, secrets), SecretRecord(_EMPTY), "map[string]manifest.Secret")


def _wrap(secrets: Mapping[str, Secret], name: str) -> SecretRecord:
    return SecretRecord(secrets[name])
