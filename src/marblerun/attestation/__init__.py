"""Did the hardware say this? Evidence, collateral, trusted roots and one time in; claims or a refusal out."""
