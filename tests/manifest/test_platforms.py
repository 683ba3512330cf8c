"""What a manifest says about TDs and platforms is read, checked and compared; old manifests mean the same."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.manifest.test_schema import SCHEMA, accepts

from marblerun.manifest.changes import infrastructures_equal, packages_equal
from marblerun.manifest.check import check_manifest
from marblerun.manifest.encode import encode_infrastructure, encode_package
from marblerun.manifest.lint import lint
from marblerun.manifest.model import Infrastructure, Package, TdxIdentity
from marblerun.manifest.parse import parse_infrastructure, parse_manifest, parse_package
from marblerun.wire.gojson import BadJson

HEX48, HEX8 = "ab" * 48, "0000001000000000"
TDX = {"MRTD": HEX48, "RTMR1": HEX48, "RTMR2": HEX48}


def document(tdx: Any = None, infrastructure: dict[str, Any] | None = None, **package: Any) -> dict[str, Any]:
    written = {"TDX": tdx, **package} if tdx is not None else package
    return {
        "Packages": {"p": written},
        "Marbles": {"m": {"Package": "p"}},
        "Infrastructures": {"i": infrastructure} if infrastructure is not None else {},
    }


def errors(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    report = check_manifest(parse_manifest(json.dumps(manifest).encode()), {})
    return [(problem.path, problem.code) for problem in report.errors]


def test_every_key_is_read_and_written_again() -> None:
    keys = (
        "MRTD",
        "RTMR0",
        "RTMR1",
        "RTMR2",
        "RTMR3",
        "MRCONFIGID",
        "MROWNER",
        "MROWNERCONFIG",
        "MRSEAM",
        "MRSERVICETD",
    )
    stated = {key: f"{i:02x}" * 48 for i, key in enumerate(keys)}
    stated |= {"TDAttributes": "01" * 8, "TDAttributesMask": "03" * 8, "XFAM": "05" * 8, "XFAMMask": "07" * 8}
    package = parse_package(json.dumps({"TDX": stated | {"ModuleSVN": 5}}).encode())
    expected = TdxIdentity(
        mrtd="00" * 48,
        rtmrs=("01" * 48, "02" * 48, "03" * 48, "04" * 48),
        mr_config_id="05" * 48,
        mr_owner="06" * 48,
        mr_owner_config="07" * 48,
        mr_seam="08" * 48,
        mr_service_td="09" * 48,
        td_attributes="01" * 8,
        td_attributes_mask="03" * 8,
        xfam="05" * 8,
        xfam_mask="07" * 8,
        module_svn=5,
    )
    assert package.tdx == expected
    assert json.loads(encode_package(package))["TDX"] == stated | {"ModuleSVN": 5}


def test_an_absent_list_is_no_rule_and_an_empty_one_is_kept_as_such() -> None:
    assert parse_infrastructure(b"{}") == parse_infrastructure(b'{"FMSPCs": null}') == Infrastructure()
    written = b'{"FMSPCs": [], "PPIDs": ["aa"], "PlatformInstanceIDs": [], "MinTCBEvaluationDataNumber": 0}'
    empty = Infrastructure(fmspcs=(), ppids=("aa",), platform_instance_ids=(), min_tcb_evaluation_data_number=0)
    assert parse_infrastructure(written) == empty
    assert parse_infrastructure(encode_infrastructure(empty)) == empty


def test_what_the_reference_knows_is_stored_as_it_stores_it() -> None:
    assert encode_infrastructure(Infrastructure()) == b'{"CPUSVN":null,"QESVN":null,"PCESVN":null,"RootCA":null}'
    assert list(json.loads(encode_package(Package(unique_id="aa")))) == [
        "Debug",
        "UniqueID",
        "SignerID",
        "ProductID",
        "SecurityVersion",
        "AcceptedTCBStatuses",
        "AcceptedAdvisories",
    ]


def test_packages_and_infrastructures_that_differ_in_a_new_key_differ() -> None:
    td = Package(tdx=TdxIdentity(mrtd=HEX48))
    assert packages_equal(td, replace(td))
    assert not packages_equal(td, replace(td, tdx=None))
    assert not packages_equal(td, replace(td, tdx=TdxIdentity(mrtd=HEX48, module_svn=1)))
    assert not infrastructures_equal(Infrastructure(), Infrastructure(ppids=()))


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (document(TDX), []),
        (document(TDX, UniqueID="aa"), []),
        (document(TDX | {"TDAttributes": HEX8, "TDAttributesMask": HEX8, "XFAM": HEX8}), []),
        (document({}), [("Packages.p.TDX.MRTD", "package-incomplete")]),
        (document({}, Debug=True), []),
        (document(TDX, SignerID="aa", ProductID=1), [("Packages.p.SecurityVersion", "package-incomplete")]),
        (document({"MRTD": HEX48 + "00"}), [("Packages.p.TDX.MRTD", "tdx-identity")]),
        (document({"MRTD": "zz" * 48}), [("Packages.p.TDX.MRTD", "tdx-identity")]),
        (document(TDX | {"RTMR3": " " + HEX48[1:]}), [("Packages.p.TDX.RTMR3", "tdx-identity")]),
        (document(TDX | {"XFAM": "10"}), [("Packages.p.TDX.XFAM", "tdx-identity")]),
        (document(TDX | {"XFAM": HEX8, "XFAMMask": "1"}), [("Packages.p.TDX.XFAMMask", "tdx-identity")]),
        (document(TDX | {"XFAMMask": HEX8}), [("Packages.p.TDX.XFAMMask", "tdx-identity")]),
        (
            document(TDX | {"TDAttributes": HEX8, "TDAttributesMask": "00" * 8}),
            [("Packages.p.TDX.TDAttributes", "tdx-identity")],
        ),
        (document(TDX, {"FMSPCs": ["00606A000000"], "PPIDs": ["ab" * 16], "PlatformInstanceIDs": []}), []),
        (document(TDX, {"FMSPCs": ["00606A000000", ""]}), [("Infrastructures.i.FMSPCs[1]", "infrastructure-id")]),
        (document(TDX, {"PPIDs": ["ab" * 15]}), [("Infrastructures.i.PPIDs[0]", "infrastructure-id")]),
        (
            document(TDX, {"PlatformInstanceIDs": ["xy" * 16]}),
            [("Infrastructures.i.PlatformInstanceIDs[0]", "infrastructure-id")],
        ),
    ],
)
def test_what_can_never_match_or_says_nothing_is_an_error_and_the_schema_agrees_on_forms(
    manifest: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert expected == errors(manifest)
    if not expected:
        assert accepts(SCHEMA, manifest)


@pytest.mark.parametrize(
    "manifest",
    [
        document({"MRTD": "zz" * 48}),
        document({"XFAM": "10"}),
        document({"ModuleSVN": 256}),
        document({"MRTD": 5}),
        document(TDX, {"FMSPCs": ["00606A00000"]}),
        document(TDX, {"PPIDs": [None]}),
        document(TDX, {"MinTCBEvaluationDataNumber": -1}),
    ],
)
def test_the_schema_refuses_what_it_can_tell_and_so_does_the_coordinator(manifest: dict[str, Any]) -> None:
    assert not accepts(SCHEMA, manifest)
    try:
        assert errors(manifest) != []
    except BadJson:
        return


@pytest.mark.parametrize(
    ("manifest", "rule", "path"),
    [
        (document({"MRTD": HEX48}), "tdx-unmeasured", "Packages.p.TDX"),
        (document({"MRTD": HEX48, "RTMR1": HEX48}), "tdx-unmeasured", "Packages.p.TDX"),
        (document(TDX, {"PPIDs": []}), "infrastructure-empty", "Infrastructures.i.PPIDs"),
        (document(TDX, {"CPUSVN": [1, 2]}), "infrastructure-empty", "Infrastructures.i.CPUSVN"),
        (document(TDX, {}), "infrastructure-any", "Infrastructures.i"),
        (document(TDX | {"MRTDD": HEX48}), "key-unknown", "Packages.p.TDX.MRTDD"),
    ],
)
def test_the_linter_tells_what_is_probably_not_meant(manifest: dict[str, Any], rule: str, path: str) -> None:
    assert (rule, path) in [(finding.rule, finding.path) for finding in lint(json.dumps(manifest).encode())]


def test_the_linter_is_content_with_a_measured_td() -> None:
    rules = {finding.rule for finding in lint(json.dumps(document(TDX, {"FMSPCs": ["00606A000000"]})).encode())}
    assert not rules & {
        "tdx-unmeasured",
        "tdx-identity",
        "infrastructure-empty",
        "infrastructure-any",
        "infrastructure-id",
    }
    assert "key-unknown" not in rules
