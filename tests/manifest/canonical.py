"""A manifest in the plain form in which the Go program prints its own, so that both can be compared."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

from marblerun.manifest.model import File, Manifest, TlsTag
from marblerun.pki.profiles import CertificateTemplate
from marblerun.secrets.model import SecretDefinition

_POINTERS = {"ProductID", "SecurityVersion", "QESVN", "PCESVN"}


def plain(manifest: Manifest) -> dict[str, Any]:
    """Our manifest; what is empty is None."""
    config = manifest.config
    value = {
        "Packages": {
            name: {
                "Debug": package.debug,
                "UniqueID": package.unique_id,
                "SignerID": package.signer_id,
                "ProductID": package.product_id,
                "SecurityVersion": package.security_version,
                "AcceptedTCBStatuses": list(package.accepted_tcb_statuses),
                "AcceptedAdvisories": list(package.accepted_advisories),
            }
            for name, package in manifest.packages.items()
        },
        "Infrastructures": {
            name: {
                "CPUSVN": _bytes(infrastructure.cpu_svn),
                "QESVN": infrastructure.qe_svn,
                "PCESVN": infrastructure.pce_svn,
                "RootCA": _bytes(infrastructure.root_ca),
            }
            for name, infrastructure in manifest.infrastructures.items()
        },
        "Marbles": {
            name: {
                "Package": marble.package,
                "MaxActivations": marble.max_activations,
                "Parameters": {
                    "Files": {path: _file(file) for path, file in marble.parameters.files.items()},
                    "Env": {path: _file(file) for path, file in marble.parameters.env.items()},
                    "Argv": list(marble.parameters.argv),
                },
                "TLS": list(marble.tls),
                "DisableSecretBinding": marble.disable_secret_binding,
            }
            for name, marble in manifest.marbles.items()
        },
        "Users": {
            name: {"Certificate": user.certificate, "Roles": list(user.roles)} for name, user in manifest.users.items()
        },
        "Secrets": {name: _secret(secret) for name, secret in manifest.secrets.items()},
        "RecoveryKeys": dict(manifest.recovery_keys),
        "Roles": {
            name: {
                "ResourceType": role.resource_type,
                "ResourceNames": list(role.resource_names),
                "Actions": list(role.actions),
            }
            for name, role in manifest.roles.items()
        },
        "TLS": {name: _tag(tag) for name, tag in manifest.tls.items()},
        "Config": {
            "SealMode": config.seal_mode,
            "FeatureGates": list(config.feature_gates),
            "UpdateThreshold": config.update_threshold,
            "RecoveryThreshold": config.recovery_threshold,
            "RotateRootSecret": config.rotate_root_secret,
        },
    }
    soft = soften(value)
    assert isinstance(soft, dict)
    return soft


def soften(value: Any, key: str = "") -> Any:
    """Nil and empty look the same; a certificate template is left alone, where they are told apart."""
    if key == "Cert" and isinstance(value, list):
        return value
    if isinstance(value, dict):
        return {name: soften(item, name) for name, item in value.items()} or None
    if isinstance(value, list):
        return [soften(item) for item in value] or None
    return None if value is None or (value == "" and key in ("CPUSVN", "RootCA", "Private", "Public")) else value


def _bytes(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _file(file: File) -> list[Any]:
    return [file.data.hex(), file.encoding, file.no_templates]


def _tag(tag: TlsTag) -> dict[str, Any]:
    return {
        key: [
            {
                "Port": entry.port,
                "Addr": entry.addr,
                "Cert": entry.cert,
                "DisableClientAuth": entry.disable_client_auth,
            }
            for entry in entries
        ]
        for key, entries in (("Outgoing", tag.outgoing), ("Incoming", tag.incoming))
    }


def _secret(secret: SecretDefinition) -> dict[str, Any]:
    return {
        "Type": secret.type,
        "Size": secret.size,
        "Shared": secret.shared,
        "UserDefined": secret.user_defined,
        "Cert": secret.certificate.hex()
        if secret.certificate is not None
        else _template(secret.template or CertificateTemplate()),
        "ValidFor": secret.valid_for,
        "Private": _bytes(secret.private),
        "Public": _bytes(secret.public),
    }


def _template(template: CertificateTemplate) -> list[Any]:
    subject = template.subject

    def listed(values: tuple[Any, ...] | None) -> list[Any] | None:
        return None if values is None else list(values)

    return [
        [
            list(subject.country),
            list(subject.organization),
            list(subject.organizational_unit),
            list(subject.locality),
            list(subject.province),
            list(subject.street_address),
            list(subject.postal_code),
        ],
        subject.serial_number,
        subject.common_name,
        [list(pair) for pair in subject.extra_names],
        listed(template.dns_names),
        listed(template.email_addresses),
        listed(template.ip_addresses),
        listed(template.uris),
        _time(template.not_after),
        template.key_usage,
        listed(template.ext_key_usage),
        listed(template.unknown_ext_key_usage),
        template.is_ca,
        template.max_path_len,
        template.max_path_len_zero,
        template.subject_key_id.hex(),
        template.authority_key_id.hex(),
        [list(template.ocsp_server), list(template.issuing_certificate_url), list(template.crl_distribution_points)],
        template.permitted_dns_domains_critical,
        [list(template.permitted_dns_domains), list(template.excluded_dns_domains)],
        [
            [_network(text) for text in template.permitted_ip_ranges],
            [_network(text) for text in template.excluded_ip_ranges],
        ],
        [
            list(template.permitted_email_addresses),
            list(template.excluded_email_addresses),
            list(template.permitted_uri_domains),
            list(template.excluded_uri_domains),
        ],
        list(template.policies),
        [[oid, critical, value.hex()] for oid, critical, value in template.extra_extensions],
        template.signature_algorithm,
    ]


# Positions in a template where Go's nil and empty list mean the same to us.
_SOFT = (0, 17, 19, 21)


def soften_go(value: Any) -> Any:
    """Go's manifest in the same form."""
    for secret in (value.get("Secrets") or {}).values():
        cert = secret["Cert"]
        if isinstance(cert, list):
            for position in _SOFT:
                cert[position] = [item or [] for item in cert[position]]
    return soften(value)


def _time(when: datetime | None) -> str | None:
    if when is None:
        return None
    if when == datetime.max.replace(tzinfo=UTC):
        return "after year 9999"
    if when.year < 401:  # years before 1 exist in Go and not here
        return "long past"
    return f"{when.year:04d}" + when.strftime("-%m-%dT%H:%M:%S.%f")


def _network(text: str) -> str:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return "invalid"
    return network.network_address.packed.hex() + network.netmask.packed.hex()


def prune(value: Any, key: str = "") -> Any:
    """Without the fields that have their zero value, which shortens the golden file and loses nothing."""
    if not isinstance(value, dict):
        return value
    kept = {name: prune(item, name) for name, item in value.items()}
    if key == "RecoveryKeys":
        return kept
    return {name: item for name, item in kept.items() if isinstance(item, dict) or item not in (None, False, "")}
