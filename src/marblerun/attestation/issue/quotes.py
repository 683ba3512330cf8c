"""Fresh quotes on their way out: cut to size, checked to be over what was asked for, wrapped as the wire expects.

Nothing here verifies a quote; this is the side that makes it.
"""

from __future__ import annotations

from hmac import compare_digest

from marblerun.attestation.dcap.quote import add_oe_header, parse_quote_prefix
from marblerun.attestation.model import Tee
from marblerun.errors import Malformed


def finish_quote(raw: bytes, report_data: bytes) -> bytes:
    """Return the quote that ``raw`` starts with as evidence for the wire, after a look at what it is.

    1. The quote is found and padding after its signature data is cut off.
    2. Its report data must be ``report_data``: devices are shared files, and another writer in between would give us
       a quote that vouches for somebody else.
    3. An SGX quote gets the Open Enclave header, which a Coordinator expects (protocol, section 4.1); a TDX quote stays
       bare.

    Raises:
        Malformed: not a version 3, 4 or 5 quote, or one over other report data.
    """
    quote, padding = parse_quote_prefix(raw)  # 1
    if not compare_digest(quote.report.report_data, report_data):  # 2
        raise Malformed("the quote is over other report data than was asked for", where="quote")
    exact = raw[: len(raw) - len(padding)]
    return add_oe_header(exact) if quote.tee is Tee.SGX else exact  # 3
