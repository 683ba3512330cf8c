"""Random manifests as text, mostly right and slightly wrong everywhere: keys, nulls, duplicates, numbers, escapes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

Text = st.SearchStrategy[str]

_WORDS = st.sampled_from(
    ["", "a", "b", "backend", "ſ", "é", "<&>", "😀", "x y", "\u2028", "UpdateManifest", "string", "hex"]
)


def _array(items: list[str]) -> str:
    return f"[{','.join(items)}]"


def _quote(text: str, ascii_only: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)


strings: Text = st.one_of(
    st.builds(_quote, _WORDS, st.booleans()),
    st.builds(
        _quote, st.text(max_size=6).filter(lambda t: not any("\ud800" <= c <= "\udfff" for c in t)), st.booleans()
    ),
    st.sampled_from(['"\\ud800"', '"\\ud83d\\ude00"', '"\\ude00x"', '"\\/"', '"\\u0000"', '"\x7f"']),
)
numbers: Text = st.one_of(
    st.integers(-3, 300).map(str),
    st.sampled_from(["0", "-0", "1.0", "1e2", "65535", "65536", str(2**64 - 1), str(2**64), "1E400"]),
    st.integers(-(2**65), 2**65).map(str),
)
booleans: Text = st.sampled_from(["true", "false"])
octets: Text = st.one_of(
    st.binary(max_size=9).map(lambda raw: json.dumps(base64.b64encode(raw).decode())),
    st.lists(st.one_of(st.integers(0, 256).map(str), st.just("null")), max_size=4).map(
        lambda items: f"[{','.join(items)}]"
    ),
    st.sampled_from(['"AQ="', '"AQ"', '"A\\nQ=\\r="', '"_w=="']),
)
junk: Text = st.sampled_from(["null", "null", "1", "true", '"x"', "[]", "{}", '[{"a":[]}]', "-1.5e3"])


def mostly(shape: Text) -> Text:
    """Usually a value of the shape, sometimes null or something else."""
    return st.integers(0, 19).flatmap(lambda dice: junk if dice == 0 else (st.just("null") if dice == 1 else shape))


def lists(of: Text) -> Text:
    """An array."""
    return st.lists(mostly(of), max_size=3).map(_array)


def maps(of: Text) -> Text:
    """An object with keys of its own."""
    keys = st.sampled_from(['"a"', '"b"', '"A"', '"\\u0061"', '""'])
    return st.lists(st.tuples(keys, mostly(of)), max_size=3).map(_members)


def _members(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{key}:{value}" for key, value in pairs) + "}"


def _respell(name: str, how: int) -> str:
    match how:
        case 0:
            name = name.lower()
        case 1:
            name = name.upper()
        case 2:
            name = name.replace("s", "ſ").replace("K", "K").replace("k", "K").replace("S", "ſ")
        case 3:
            name = name.swapcase()
        case 4:
            return '"' + "".join(f"\\u{ord(c):04x}" for c in name) + '"'
        case 5:
            name += "x"
    return json.dumps(name, ensure_ascii=how % 2 == 0)


def structs(fields: Mapping[str, Text]) -> Text:
    """An object with fixed fields: some missing, some twice, some respelt."""
    member = st.sampled_from(sorted(fields)).flatmap(
        lambda name: st.tuples(st.integers(0, 25).map(lambda how: _respell(name, how)), mostly(fields[name]))
    )
    return st.lists(member, max_size=4).map(_members)


packages = structs(
    {
        "Debug": booleans,
        "UniqueID": strings,
        "SignerID": strings,
        "ProductID": numbers,
        "SecurityVersion": numbers,
        "AcceptedTCBStatuses": lists(strings),
        "AcceptedAdvisories": lists(strings),
    }
)
infrastructures = structs({"CPUSVN": octets, "QESVN": numbers, "PCESVN": numbers, "RootCA": octets})
_encodings: Text = st.sampled_from(['"string"', '"HEX"', '"base64"', '""', '"Base64"', '"utf8"'])
_file_data: Text = st.one_of(strings, octets, st.binary(max_size=4).map(lambda raw: json.dumps(raw.hex().upper())))
files = st.one_of(strings, structs({"Data": _file_data, "Encoding": _encodings, "NoTemplates": booleans}))
marbles = structs(
    {
        "Package": strings,
        "MaxActivations": numbers,
        "Parameters": structs({"Files": maps(files), "Env": maps(files), "Argv": lists(strings)}),
        "TLS": lists(strings),
        "DisableSecretBinding": booleans,
    }
)
_entries = lists(structs({"Port": strings, "Addr": strings, "Cert": strings, "DisableClientAuth": booleans}))
_oid_numbers = lists(st.integers(-1, 2000).map(str))
_oid_texts: Text = st.lists(st.integers(0, 50).map(str), min_size=1, max_size=4).map(
    lambda arcs: json.dumps(".".join(arcs))
)
_addresses: Text = st.one_of(
    st.ip_addresses().map(lambda address: json.dumps(str(address))),
    st.sampled_from(['"::ffff:1.2.3.4"', '"1.2.3"', '"01.2.3.4"', '"::1%lo"', '""', '"1::"', '"FE80::AB"']),
)
_times: Text = st.one_of(
    st.datetimes().map(lambda when: json.dumps(when.isoformat() + "Z")),
    st.builds(
        lambda when, hours, minutes: json.dumps(f"{when.isoformat(timespec='seconds')}{hours:+03d}:{minutes:02d}"),
        st.datetimes(),
        st.integers(-25, 25),
        st.integers(0, 61),
    ),
    st.sampled_from(
        ['"2030-01-01T1:00:00Z"', '"2030-13-01T00:00:00Z"', '"2030-02-29T00:00:00Z"', '"2028-02-29T00:00:00,5Z"']
    ),
)
_urls = structs(
    {
        "Scheme": strings,
        "Opaque": st.sampled_from(['""', '"o"']),
        "Host": strings,
        "Path": st.one_of(strings, st.sampled_from(['"/a b"', '"a:b"', '"*"', '"/a/b"'])),
        "Fragment": strings,
        "RawQuery": strings,
        "RawPath": st.sampled_from(['"/a%20b"', '"/a%2fb"', '"%zz"', '"*"', '"a:b"']),
        "RawFragment": st.sampled_from(['"a"', '"%61"', '"x y"', '"é"']),
        "ForceQuery": booleans,
        "OmitHost": booleans,
        "User": st.just("{}"),
    }
)
_networks = lists(structs({"IP": _addresses, "Mask": octets}))
_names = structs(
    {
        **dict.fromkeys(["Country", "Organization", "Province", "PostalCode"], lists(strings)),
        **dict.fromkeys(["SerialNumber", "CommonName"], strings),
        "ExtraNames": st.lists(
            st.builds(lambda oid, text: f'{{"Type":{oid},"Value":{text}}}', _oid_numbers, strings), max_size=2
        ).map(_array),
        "Names": lists(structs({"Type": _oid_numbers, "Value": junk})),
    }
)
_extensions = lists(structs({"Id": _oid_numbers, "Critical": booleans, "Value": octets}))
certificates: Text = st.one_of(
    structs(
        {
            "Subject": _names,
            **dict.fromkeys(["DNSNames", "EmailAddresses", "OCSPServer", "CRLDistributionPoints"], lists(strings)),
            "IPAddresses": lists(_addresses),
            "URIs": lists(_urls),
            **dict.fromkeys(["NotAfter", "NotBefore"], _times),
            **dict.fromkeys(["KeyUsage", "MaxPathLen", "SignatureAlgorithm", "SerialNumber", "Version"], numbers),
            "ExtKeyUsage": lists(numbers),
            "UnknownExtKeyUsage": lists(_oid_numbers),
            **dict.fromkeys(["IsCA", "MaxPathLenZero", "PermittedDNSDomainsCritical"], booleans),
            **dict.fromkeys(["SubjectKeyId", "AuthorityKeyId", "Raw"], octets),
            **dict.fromkeys(["PermittedIPRanges", "ExcludedIPRanges"], _networks),
            "Policies": lists(_oid_texts),
            "ExtraExtensions": _extensions,
            "PublicKey": junk,
        }
    ),
    st.sampled_from(['"!"', '"AQID"', '""']),
)
secrets = structs(
    {
        "Type": strings,
        "Size": numbers,
        "Shared": booleans,
        "UserDefined": booleans,
        "Cert": certificates,
        "ValidFor": numbers,
        "Private": octets,
        "Public": octets,
    }
)
manifests = structs(
    {
        "Packages": maps(packages),
        "Infrastructures": maps(infrastructures),
        "Marbles": maps(marbles),
        "Users": maps(structs({"Certificate": strings, "Roles": lists(strings)})),
        "Secrets": maps(secrets),
        "RecoveryKeys": maps(strings),
        "Roles": maps(structs({"ResourceType": strings, "ResourceNames": lists(strings), "Actions": lists(strings)})),
        "TLS": maps(structs({"Outgoing": _entries, "Incoming": _entries})),
        "Config": structs(
            {
                "SealMode": strings,
                "FeatureGates": lists(strings),
                "UpdateThreshold": numbers,
                "RecoveryThreshold": numbers,
                "RotateRootSecret": booleans,
            }
        ),
    }
)
"""Text of whole manifests."""


def shaken(text: str, at: int, how: int) -> bytes:
    """A document with one byte changed, dropped or doubled, or left as it is."""
    raw = text.encode()
    if not raw or how > 3:
        return raw
    at %= len(raw)
    match how:
        case 0:
            return raw[:at] + raw[at + 1 :]
        case 1:
            return raw[:at] + raw[at : at + 1] + raw[at:]
        case 2:
            return raw[:at] + b"\xff" + raw[at + 1 :]
    return raw[:at] + bytes([raw[at] ^ 0x20]) + raw[at + 1 :]


documents: st.SearchStrategy[bytes] = st.builds(shaken, manifests, st.integers(0, 10_000), st.integers(0, 12))


def sections() -> dict[str, Any]:
    """Strategies by section, for documents that go deep into one."""
    return {
        "Packages": maps(packages),
        "Secrets": maps(secrets),
        "Marbles": maps(marbles),
        "Infrastructures": maps(infrastructures),
    }
