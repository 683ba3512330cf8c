"""Manifest entities to JSON, as the reference stores them; the inverse of :mod:`marblerun.manifest.parse`.

Fields keep the order of the reference's structures, unset values are written as ``null``.
Source: protocol, sections 5.2 to 5.4 and 11.1.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Any

from marblerun.manifest.model import File, Infrastructure, Marble, Package, TdxIdentity, TlsEntry, TlsTag
from marblerun.wire.gojson import Struct, lower, marshal


def encode_package(package: Package) -> bytes:
    """A package as JSON."""
    return marshal(package_fields(package))


def encode_infrastructure(infrastructure: Infrastructure) -> bytes:
    """An infrastructure as JSON."""
    fields = Struct(
        (
            ("CPUSVN", infrastructure.cpu_svn or None),
            ("QESVN", infrastructure.qe_svn),
            ("PCESVN", infrastructure.pce_svn),
            ("RootCA", infrastructure.root_ca or None),
            # Not in the reference, so only where they are stated.
            *_stated(
                ("FMSPCs", infrastructure.fmspcs),
                ("PPIDs", infrastructure.ppids),
                ("PlatformInstanceIDs", infrastructure.platform_instance_ids),
                ("MinTCBEvaluationDataNumber", infrastructure.min_tcb_evaluation_data_number),
            ),
        )
    )
    return marshal(fields)


def encode_marble(marble: Marble) -> bytes:
    """A Marble as JSON; every file takes the object form, its data in the encoding it was written in.

    The keys that the reference does not know are written only where they are set, so that a state without them is
    byte for byte its own.
    """
    parameters = marble.parameters
    fields = Struct(
        (
            ("Package", marble.package),
            ("MaxActivations", marble.max_activations),
            (
                "Parameters",
                Struct(
                    (
                        ("Files", _files(parameters.files)),
                        ("Env", _files(parameters.env)),
                        ("Argv", parameters.argv or None),
                    )
                ),
            ),
            ("TLS", marble.tls or None),
            ("DisableSecretBinding", marble.disable_secret_binding),
            *((key, names) for key, names in _allowed(marble) if names is not None),
        )
    )
    return marshal(fields)


def encode_tls_tag(tag: TlsTag) -> bytes:
    """A TLS tag as JSON."""
    return marshal(Struct((("Outgoing", _entries(tag.outgoing)), ("Incoming", _entries(tag.incoming)))))


def package_fields(package: Package) -> Struct:
    """The fields of a package, for JSON that holds several."""
    return Struct(
        (
            ("Debug", package.debug),
            ("UniqueID", package.unique_id),
            ("SignerID", package.signer_id),
            ("ProductID", package.product_id),
            ("SecurityVersion", package.security_version),
            ("AcceptedTCBStatuses", package.accepted_tcb_statuses or None),
            ("AcceptedAdvisories", package.accepted_advisories or None),
            *_stated(("TDX", None if package.tdx is None else _tdx_fields(package.tdx))),
        )
    )


def _tdx_fields(tdx: TdxIdentity) -> Struct:
    texts = {"MRTD": tdx.mrtd, **{f"RTMR{index}": value for index, value in enumerate(tdx.rtmrs)}}
    texts |= {"MRCONFIGID": tdx.mr_config_id, "MROWNER": tdx.mr_owner, "MROWNERCONFIG": tdx.mr_owner_config}
    texts |= {"MRSEAM": tdx.mr_seam, "MRSERVICETD": tdx.mr_service_td}
    texts |= {"TDAttributes": tdx.td_attributes, "TDAttributesMask": tdx.td_attributes_mask}
    texts |= {"XFAM": tdx.xfam, "XFAMMask": tdx.xfam_mask}
    return Struct((*((name, text) for name, text in texts.items() if text), *_stated(("ModuleSVN", tdx.module_svn))))


def _stated(*fields: tuple[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple(field for field in fields if field[1] is not None)


def encode_file_data(file: File) -> str:
    """The data of a file as it would be written in its own encoding."""
    match lower(file.encoding):
        case "base64":
            return b64encode(file.data).decode()
        case "hex":
            return file.data.hex()
    return file.data.decode(errors="replace")


def _allowed(marble: Marble) -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    return ("AllowedDNSNames", marble.allowed_dns_names), ("AllowedIPs", marble.allowed_ips)


def _files(files: Mapping[str, File]) -> dict[str, Any] | None:
    written = {
        name: Struct(
            (("Data", encode_file_data(file)), ("Encoding", file.encoding), ("NoTemplates", file.no_templates))
        )
        for name, file in files.items()
    }
    return written or None


def _entries(entries: Iterable[TlsEntry]) -> list[Struct] | None:
    written = [
        Struct(
            (
                ("Port", entry.port),
                ("Addr", entry.addr),
                ("Cert", entry.cert),
                ("DisableClientAuth", entry.disable_client_auth),
            )
        )
        for entry in entries
    ]
    return written or None
