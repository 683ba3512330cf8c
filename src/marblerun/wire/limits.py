"""Every ceiling on input, with its name and its reason; nothing is read without one."""

from __future__ import annotations

from typing import Final

# Real DCAP quotes are below 5.3 KiB; a configfs-tsm outblob is padded to 8 KiB.
MAX_QUOTE_BYTES: Final = 16 * 1024
# Collateral for one platform is about 40 KiB; TCB Infos grow with every recovery.
MAX_COLLATERAL_FIELD_BYTES: Final = 1024 * 1024
# gRPC's default for received messages, on both sides of the reference (protocol, section 2.1).
MAX_GRPC_MESSAGE_BYTES: Final = 4 * 1024 * 1024
# A manifest with files inside is rarely above 1 MiB; base64 in the v2 body adds a third.
MAX_MANIFEST_BYTES: Final = 16 * 1024 * 1024
MAX_REST_BODY_BYTES: Final = 24 * 1024 * 1024
# The reference reads this much of a recovery request (protocol, section 7.2).
MAX_RECOVER_BODY_BYTES: Final = 20480
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_CSR_BYTES: Final = 64 * 1024
MAX_JSON_DEPTH: Final = 10_000  # what Go's encoding/json accepts
# A manifest of a thousand Marbles has some tens of thousands; reading this many takes about half a second.
MAX_JSON_VALUES: Final = 100_000
# A sealed state is authentic before it is read; every counter and every activation count is an entry of its own.
MAX_STATE_ENTRIES: Final = 1_000_000
MAX_TEMPLATE_STEPS: Final = 1_000_000
# For all templates of a manifest when it is tried, which happens in one go; about three seconds.
MAX_DRY_RUN_STEPS: Final = 3_000_000
MAX_TEMPLATE_OUTPUT_BYTES: Final = 16 * 1024 * 1024
# A sealed state holds manifest, secrets and log; two bytes of length prefix are 32 bit (protocol, section 10.1).
MAX_SEALED_STATE_BYTES: Final = 256 * 1024 * 1024
