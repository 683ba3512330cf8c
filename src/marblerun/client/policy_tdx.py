"""The ``TDX`` object of an attestation policy: which TD a Coordinator may run in; keys as in a manifest's package.

Our own addition; the reference's policies describe SGX enclaves only.
"""

from __future__ import annotations

from typing import Any, Final

from marblerun.errors import Malformed
from marblerun.manifest.model import Package, TdxIdentity
from marblerun.manifest.platforms import tdx_problems
from marblerun.wire import jsontree

_RTMRS: Final = ("RTMR0", "RTMR1", "RTMR2", "RTMR3")
_TEXTS: Final = {
    "MRTD": "mrtd",
    "MRCONFIGID": "mr_config_id",
    "MROWNER": "mr_owner",
    "MROWNERCONFIG": "mr_owner_config",
    "MRSEAM": "mr_seam",
    "MRSERVICETD": "mr_service_td",
    "TDAttributes": "td_attributes",
    "TDAttributesMask": "td_attributes_mask",
    "XFAM": "xfam",
    "XFAMMask": "xfam_mask",
}
_MODULE_SVN: Final = "ModuleSVN"
_KEYS: Final = {key.casefold(): key for key in (*_TEXTS, *_RTMRS, _MODULE_SVN)}


def parse_tdx(node: jsontree.Node, where: str) -> TdxIdentity:
    """The TD that the object describes; keys in any case, unknown or repeated ones are refused.

    Raises:
        Malformed: it is no such object, a value is none that hardware can have, or MRTD is missing.
    """
    if not isinstance(node, jsontree.Object):
        raise Malformed("expected an object", where=where)
    stated: dict[str, jsontree.Node] = {}
    for member in node.members:
        key = _KEYS.get(member.key.casefold())
        if key is None:
            raise Malformed("is not a key of TDX", where=f"{where}.{member.key}")
        if key in stated:
            raise Malformed("is there twice", where=f"{where}.{key}")
        stated[key] = member.value
    texts = {key: _text(value, f"{where}.{key}") for key, value in stated.items() if key != _MODULE_SVN}
    values: dict[str, Any] = {name: texts.get(key, "") for key, name in _TEXTS.items()}
    tdx = TdxIdentity(
        **values,
        rtmrs=(texts.get("RTMR0", ""), texts.get("RTMR1", ""), texts.get("RTMR2", ""), texts.get("RTMR3", "")),
        module_svn=_svn(stated[_MODULE_SVN], f"{where}.{_MODULE_SVN}") if _MODULE_SVN in stated else None,
    )
    for problem in tdx_problems("Coordinator", Package(tdx=tdx)):
        raise Malformed(problem.message, where=where + problem.path.partition(".TDX")[2])
    return tdx


def _text(node: jsontree.Node, where: str) -> str:
    if isinstance(node, jsontree.Null):
        return ""
    if not isinstance(node, jsontree.String):
        raise Malformed("expected a string", where=where)
    return node.text


def _svn(node: jsontree.Node, where: str) -> int | None:
    if isinstance(node, jsontree.Null):
        return None
    if isinstance(node, jsontree.Number) and node.literal.isdecimal() and len(node.literal) <= 3:
        value = int(node.literal)
        if value <= 255:
            return value
    raise Malformed("expected a number from 0 to 255", where=where)
