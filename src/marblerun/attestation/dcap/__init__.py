"""Intel DCAP: SGX and TDX quotes, their collateral, and the rules by which one vouches for the other. Pure."""
