"""What a manifest says about TDs and platforms beyond the reference's keys: whether it can be meant like that.

A value that can never match, or a TD of which nothing is said, is found here and not when the first Marble is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from marblerun.manifest.model import Infrastructure, Manifest, Package, TdxIdentity
from marblerun.manifest.report import Problem

MEASUREMENT_BYTES: Final = 48
ATTRIBUTE_BYTES: Final = 8
FMSPC_BYTES: Final = 6
PLATFORM_ID_BYTES: Final = 16
"""PPID and platform instance id. Source: formats, section 3.2."""
CPU_SVN_BYTES: Final = 16


def measurements(tdx: TdxIdentity) -> tuple[tuple[str, str], ...]:
    """The measured values of a TD by their key in the manifest, stated or not."""
    return (
        ("MRTD", tdx.mrtd),
        *((f"RTMR{index}", value) for index, value in enumerate(tdx.rtmrs)),
        ("MRCONFIGID", tdx.mr_config_id),
        ("MROWNER", tdx.mr_owner),
        ("MROWNERCONFIG", tdx.mr_owner_config),
        ("MRSEAM", tdx.mr_seam),
        ("MRSERVICETD", tdx.mr_service_td),
    )


def identifier_lists(infrastructure: Infrastructure) -> tuple[tuple[str, int, tuple[str, ...] | None], ...]:
    """The lists of an infrastructure: key, size of an entry in bytes, entries (``None``: no rule)."""
    return (
        ("FMSPCs", FMSPC_BYTES, infrastructure.fmspcs),
        ("PPIDs", PLATFORM_ID_BYTES, infrastructure.ppids),
        ("PlatformInstanceIDs", PLATFORM_ID_BYTES, infrastructure.platform_instance_ids),
    )


def check_platforms(manifest: Manifest) -> Iterator[Problem]:
    """What is wrong with TDs, of used and unused packages, and with lists of platforms."""
    for name, package in sorted(manifest.packages.items()):
        yield from tdx_problems(name, package)
    for name, infrastructure in sorted(manifest.infrastructures.items()):
        for key, size, entries in identifier_lists(infrastructure):
            for index, entry in enumerate(entries or ()):
                if not is_hex(entry, size):
                    yield _not_hex(f"Infrastructures.{name}.{key}[{index}]", size, entry, code="infrastructure-id")


def tdx_problems(name: str, package: Package) -> Iterator[Problem]:
    """What is wrong with the TDs of one package; nothing if it has none."""
    tdx, path = package.tdx, f"Packages.{name}.TDX"
    if tdx is None:
        return
    if not tdx.mrtd:
        yield Problem(
            f"{path}.MRTD",
            f"manifest misses value for MRTD in package {name}",
            found="no value",
            expected="MRTD in hex",
            hint="without it any TD would do; MRTD is what the TD was built from",
            code="package-incomplete",
            warning=package.debug,
        )
    for key, value in measurements(tdx):
        if value and not is_hex(value, MEASUREMENT_BYTES):
            yield _not_hex(f"{path}.{key}", MEASUREMENT_BYTES, value)
    for key, value, mask in (
        ("TDAttributes", tdx.td_attributes, tdx.td_attributes_mask),
        ("XFAM", tdx.xfam, tdx.xfam_mask),
    ):
        yield from _masked(f"{path}.{key}", value, mask)


def _masked(path: str, value: str, mask: str) -> Iterator[Problem]:
    wrong = [(where, text) for where, text in ((path, value), (f"{path}Mask", mask)) if text]
    wrong = [(where, text) for where, text in wrong if not is_hex(text, ATTRIBUTE_BYTES)]
    yield from (_not_hex(where, ATTRIBUTE_BYTES, text) for where, text in wrong)
    if wrong or not mask:
        return
    if not value:
        yield Problem(
            f"{path}Mask",
            "a mask without the value to compare",
            expected=f"{path.rpartition('.')[2]} as well",
            hint="state which bits must be set, zeros if none may be",
            code="tdx-identity",
        )
    elif int(value, 16) & ~int(mask, 16):
        yield Problem(
            path,
            "bits are set that the mask leaves out, so no TD can match",
            found=f"{value} under {mask}",
            expected="zero bits outside the mask",
            code="tdx-identity",
        )


def platform_hazards(manifest: Manifest) -> Iterator[Problem]:
    """What is accepted and probably not meant."""
    for name, package in sorted(manifest.packages.items()):
        if package.tdx is not None and package.tdx.mrtd and not (package.tdx.rtmrs[1] and package.tdx.rtmrs[2]):
            yield Problem(
                f"Packages.{name}.TDX",
                f"package {name} admits TDs with any kernel or command line",
                hint="MRTD covers the firmware only; state RTMR1 and RTMR2 as well",
                code="tdx-unmeasured",
            )
    for name, infrastructure in sorted(manifest.infrastructures.items()):
        for key, _, entries in identifier_lists(infrastructure):
            if entries == ():
                yield Problem(
                    f"Infrastructures.{name}.{key}",
                    f"infrastructure {name} has an empty list and admits no platform",
                    hint=f"list the platforms, or leave {key} away if any will do",
                    code="infrastructure-empty",
                )
        if infrastructure == Infrastructure():
            yield Problem(
                f"Infrastructures.{name}",
                f"infrastructure {name} has no rule, so every platform satisfies it and the others do not count",
                hint="state what its platforms have, or leave Infrastructures away if any will do",
                code="infrastructure-any",
            )
        if infrastructure.cpu_svn and len(infrastructure.cpu_svn) != CPU_SVN_BYTES:
            yield Problem(
                f"Infrastructures.{name}.CPUSVN",
                f"infrastructure {name} has a CPUSVN of {len(infrastructure.cpu_svn)} bytes and admits no platform",
                hint="give one SVN for each of the 16 components",
                code="infrastructure-empty",
            )


def is_hex(text: str, size: int) -> bool:
    """Whether ``text`` is ``size`` bytes in hex digits of either case and nothing else."""
    try:
        return len(text) == 2 * size and len(bytes.fromhex(text)) == size
    except ValueError:
        return False


def _not_hex(path: str, size: int, found: str, code: str = "tdx-identity") -> Problem:
    return Problem(
        path,
        "not a value that hardware can have",
        found=found[: 2 * MEASUREMENT_BYTES + 1],
        expected=f"{2 * size} hex digits",
        hint="marblerun evidence inspect shows the values of a quote",
        code=code,
    )
