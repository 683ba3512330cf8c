"""Who may join as which Marble, on which platforms, how often, and under which names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Final

from marblerun.manifest.changes import infrastructures_equal
from marblerun.manifest.meaning.statement import Statement, Topic, came_and_went, gain, listed, loss, other
from marblerun.manifest.model import Infrastructure, Manifest, Marble, Package

# What an empty list of statuses stands for beside UpToDate (protocol, section 4.3).
_DEFAULT_STATUSES: Final = ("SWHardeningNeeded",)
_JOIN: Final = Topic.JOIN


def joining(old: Manifest, new: Manifest) -> Iterator[Statement]:
    """Marbles, the packages they run, and infrastructures."""
    for name in sorted(old.marbles.keys() | new.marbles.keys()):
        yield from _marble(name, old, new)
    for name in sorted(old.packages.keys() & new.packages.keys()):
        yield from _package(name, old.packages[name], new.packages[name])
    yield from _infrastructures(old, new)


def _marble(name: str, old: Manifest, new: Manifest) -> Iterator[Statement]:
    path = f"Marbles.{name}"
    before, after = old.marbles.get(name), new.marbles.get(name)
    if after is None:
        yield loss(_JOIN, path, f"nobody may join as Marble {name} any more")
    elif before is None:
        who = _described(new.packages.get(after.package))
        yield gain(_JOIN, path, f"{who} (package {after.package}) may join as Marble {name}, {_times(after)}")
    else:
        if before.package != after.package:
            was, now = (_described(m.packages.get(b.package)) for m, b in ((old, before), (new, after)))
            text = f"Marble {name} is now package {after.package}: {now}; it was {before.package}: {was}"
            yield gain(_JOIN, f"{path}.Package", text)
        yield from _limit(path, name, before, after)
        yield from _names(path, name, before, after)


def _described(package: Package | None) -> str:
    if package is None:
        return "enclaves of an undefined package"
    enclaves = _enclaves(package)
    if package.tdx is None:
        return enclaves
    return f"{enclaves} and {_tds(package)}" if package.states_enclave or package.debug else _tds(package)


def _tds(package: Package) -> str:
    mrtd = package.tdx.mrtd if package.tdx else ""
    return f"TDs with MRTD {mrtd}" if mrtd else "TDs of any build"


def _enclaves(package: Package) -> str:
    kind = "debug enclaves" if package.debug else "enclaves"
    if package.unique_id:
        return f"{kind} with UniqueID {package.unique_id}"
    if not package.signer_id:
        return f"{kind} of any signer"
    return (
        f"{kind} signed by {package.signer_id}, product {_value(package.product_id)}, "
        f"security version {_value(package.security_version)} or higher"
    )


def _value(number: int | None) -> str:
    return "any" if number is None else str(number)


def _times(marble: Marble) -> str:
    return f"at most {marble.max_activations} times" if marble.max_activations else "any number of times"


def _limit(path: str, name: str, before: Marble, after: Marble) -> Iterator[Statement]:
    if before.max_activations == after.max_activations:
        return
    text = f"Marble {name} may start {_times(after)}; it was {_times(before)}"
    raised = not after.max_activations or 0 < before.max_activations < after.max_activations
    yield (gain if raised else loss)(_JOIN, f"{path}.MaxActivations", text)


def _names(path: str, name: str, before: Marble, after: Marble) -> Iterator[Statement]:
    for key, kind, was, now in (
        ("AllowedDNSNames", "DNS name", before.allowed_dns_names, after.allowed_dns_names),
        ("AllowedIPs", "IP address", before.allowed_ips, after.allowed_ips),
    ):
        where = f"{path}.{key}"
        if was == now:
            continue
        if now is None:
            yield gain(_JOIN, where, f"Marble {name} may get a certificate for any {kind}", name)
        elif was is None:
            text = f"Marble {name} may get a certificate only for: {listed(now)}; it was any {kind}"
            yield loss(_JOIN, where, text, name)
        else:
            gained = f"Marble {name} may get a certificate for {kind} {{}}"
            lost = f"Marble {name} may not get a certificate for {kind} {{}} any more"
            yield from came_and_went(_JOIN, where, was, now, gained, lost, name)


def _package(name: str, before: Package, after: Package) -> Iterator[Statement]:
    path = f"Packages.{name}"
    if before.debug != after.debug:
        kinds = ("debug enclaves, whose memory the host can read", "production enclaves")
        now, was = kinds if after.debug else kinds[::-1]
        say = gain if after.debug else loss
        yield say(_JOIN, f"{path}.Debug", f"package {name} admits {now}, and no more {was}")
    for key, was, now in (
        ("UniqueID", before.unique_id.lower(), after.unique_id.lower()),
        ("SignerID", before.signer_id.lower(), after.signer_id.lower()),
        ("ProductID", _value(before.product_id), _value(after.product_id)),
    ):
        if was != now:
            text = f"package {name} admits other enclaves: {key} {now or 'any'}; it was {was or 'any'}"
            yield gain(_JOIN, f"{path}.{key}", text)
    low, high = before.security_version or 0, after.security_version or 0
    if low != high:
        more = "admits older builds" if high < low else "admits no builds"
        text = (
            f"package {name} {more}: security version {high} or higher"
            if high < low
            else (f"package {name} {more} below security version {high}; it was {low}")
        )
        yield (gain if high < low else loss)(_JOIN, f"{path}.SecurityVersion", text)
    yield from _tdx(f"{path}.TDX", name, before, after)
    yield from _tcb(path, name, before, after)


def _tdx(path: str, name: str, before: Package, after: Package) -> Iterator[Statement]:
    if before.tdx == after.tdx:
        return
    if after.tdx is None:
        yield loss(_JOIN, path, f"package {name} admits no TDs any more")
    elif before.tdx is None:
        yield gain(_JOIN, path, f"package {name} admits {_tds(after)}")
    else:
        changed = [f.name for f in fields(after.tdx) if getattr(before.tdx, f.name) != getattr(after.tdx, f.name)]
        text = f"package {name} admits other TDs: {listed(changed)} differ; they have {_tds(after)}"
        yield gain(_JOIN, path, text)


def _tcb(path: str, name: str, before: Package, after: Package) -> Iterator[Statement]:
    was, now = (set(p.accepted_tcb_statuses or _DEFAULT_STATUSES) - {"UpToDate"} for p in (before, after))
    text = f"package {name} may run on platforms of status {{}}"
    yield from came_and_went(_JOIN, f"{path}.AcceptedTCBStatuses", was, now, text, f"no more: {text}")
    where = f"{path}.AcceptedAdvisories"
    known, accepted = (frozenset(a.upper() for a in p.accepted_advisories) for p in (before, after))
    if known == accepted:
        return
    if not accepted:
        yield gain(_JOIN, where, f"package {name} may run on platforms with any open advisory")
    elif not known:
        text = f"package {name} may run only on platforms without open advisories except {listed(accepted)}"
        yield loss(_JOIN, where, text)
    else:
        text = f"package {name} may run on platforms with the open advisory {{}}"
        yield from came_and_went(_JOIN, where, known, accepted, text, f"no more: {text}")


def _infrastructures(old: Manifest, new: Manifest) -> Iterator[Statement]:
    if old.infrastructures and not new.infrastructures:
        yield gain(_JOIN, "Infrastructures", "Marbles may run on any platform; it was only on those listed")
        return
    for name in sorted(old.infrastructures.keys() | new.infrastructures.keys()):
        yield from _infrastructure(name, old, new)


def _infrastructure(name: str, old: Manifest, new: Manifest) -> Iterator[Statement]:
    path = f"Infrastructures.{name}"
    before, after = old.infrastructures.get(name), new.infrastructures.get(name)
    if before is None and after is not None:
        say = gain if old.infrastructures else loss
        only = "" if old.infrastructures else "only "
        yield say(_JOIN, path, f"Marbles may run {only}on platforms of infrastructure {name}: {_platform(after)}")
    elif after is None:
        yield loss(_JOIN, path, f"Marbles may not run on platforms of infrastructure {name} any more")
    elif before is not None and not infrastructures_equal(before, after):
        yield other(_JOIN, path, f"infrastructure {name} is now {_platform(after)}; it was {_platform(before)}")


def _platform(infrastructure: Infrastructure) -> str:
    parts = [
        f"CPU SVN {infrastructure.cpu_svn.hex()} or higher" if infrastructure.cpu_svn else "",
        f"QE SVN {infrastructure.qe_svn} or higher" if infrastructure.qe_svn is not None else "",
        f"PCE SVN {infrastructure.pce_svn} or higher" if infrastructure.pce_svn is not None else "",
        "a root CA of its own" if infrastructure.root_ca else "",
        *(
            f"{kind} one of {listed(values)}"
            for kind, values in (
                ("FMSPC", infrastructure.fmspcs),
                ("PPID", infrastructure.ppids),
                ("platform instance", infrastructure.platform_instance_ids),
            )
            if values is not None
        ),
    ]
    if infrastructure.min_tcb_evaluation_data_number is not None:
        parts.append(f"TCB evaluation {infrastructure.min_tcb_evaluation_data_number} or later")
    return ", ".join(part for part in parts if part) or "any platform"
