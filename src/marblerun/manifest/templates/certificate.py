"""Fields of a certificate in a template: ``.Secrets.x.Cert.Raw`` and other plain data of Go's ``x509.Certificate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from marblerun.manifest.templates.budget import TemplateFailure
from marblerun.manifest.templates.values import Record, Value, byte_slice, text_slice

# What stands for a certificate in a dry run (protocol, section 5.8): all its parsed fields are unset.
STAND_IN: Final = b"A"
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class _NameRecord(Record):
    """A subject or issuer; fields of Go's ``pkix.Name``."""

    __slots__ = ("_name",)
    type_name: ClassVar[str] = "pkix.Name"
    _LISTS: ClassVar[Mapping[str, x509.ObjectIdentifier]] = {
        "Country": NameOID.COUNTRY_NAME,
        "Organization": NameOID.ORGANIZATION_NAME,
        "OrganizationalUnit": NameOID.ORGANIZATIONAL_UNIT_NAME,
        "Locality": NameOID.LOCALITY_NAME,
        "Province": NameOID.STATE_OR_PROVINCE_NAME,
        "StreetAddress": NameOID.STREET_ADDRESS,
        "PostalCode": NameOID.POSTAL_CODE,
    }
    _SINGLE: ClassVar[Mapping[str, x509.ObjectIdentifier]] = {
        "CommonName": NameOID.COMMON_NAME,
        "SerialNumber": NameOID.SERIAL_NUMBER,
    }

    def __init__(self, name: x509.Name | None) -> None:
        self._name = name

    def get(self, name: str) -> Value:
        """The attribute's values in order, or the last one where Go keeps one."""
        if name in self._LISTS:
            return text_slice(self._values(self._LISTS[name]))
        values = self._values(self._SINGLE[name])
        return values[-1].encode() if values else b""

    def _values(self, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
        attributes = self._name.get_attributes_for_oid(oid) if self._name is not None else ()
        return tuple(
            attribute.value if isinstance(attribute.value, str) else attribute.value.decode("utf-8", "replace")
            for attribute in attributes
        )


def certificate_field(der: bytes, name: str) -> Value:
    """The named field; its zero value for a certificate that is not set or a stand-in.

    Raises:
        KeyError: no such field, or one of those that are not plain data (``NotAfter``, ``PublicKey``, ...).
        TemplateFailure: the secret's bytes are not a certificate.
    """
    if name == "Raw":
        return byte_slice(der)
    reader = _FIELDS[name]
    if der in (b"", STAND_IN):
        return reader(None)
    try:
        return reader(x509.load_der_x509_certificate(der))
    except _UNREADABLE as error:
        raise TemplateFailure("the certificate cannot be read") from error


def _dns_names(certificate: x509.Certificate | None) -> Value:
    return text_slice(_alternative_names(certificate, x509.DNSName))


def _email_addresses(certificate: x509.Certificate | None) -> Value:
    return text_slice(_alternative_names(certificate, x509.RFC822Name))


def _alternative_names(
    certificate: x509.Certificate | None, kind: type[x509.DNSName] | type[x509.RFC822Name]
) -> tuple[str, ...]:
    if certificate is None:
        return ()
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(value) for value in names.get_values_for_type(kind))


def _is_ca(certificate: x509.Certificate | None) -> Value:
    if certificate is None:
        return False
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


_FIELDS: Final[Mapping[str, Callable[[x509.Certificate | None], Value]]] = {
    "RawTBSCertificate": lambda cert: byte_slice(cert.tbs_certificate_bytes if cert else b""),
    "Signature": lambda cert: byte_slice(cert.signature if cert else b""),
    "Version": lambda cert: cert.version.value + 1 if cert else 0,
    "Subject": lambda cert: _NameRecord(cert.subject if cert else None),
    "Issuer": lambda cert: _NameRecord(cert.issuer if cert else None),
    "IsCA": _is_ca,
    "DNSNames": _dns_names,
    "EmailAddresses": _email_addresses,
}
