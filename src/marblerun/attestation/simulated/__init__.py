"""A software TEE: quotes and collateral in the hardware's own formats, under a root of its own.

Nothing in a quote says that it is simulated and nothing in the verifier asks. What sets it apart is the root key:
nobody trusts it by default, and whoever does sees ``Origin.SIMULATED`` in every claim. There is no protection here;
a process that can read the platform's directory can claim any measurement.
"""

from marblerun.attestation.simulated.identity import EnclaveIdentity, identity_from_environment
from marblerun.attestation.simulated.platform import SimulatedPlatform, load_trust_root

__all__ = ["EnclaveIdentity", "SimulatedPlatform", "identity_from_environment", "load_trust_root"]
