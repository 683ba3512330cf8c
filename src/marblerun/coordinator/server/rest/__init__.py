"""The client API's routes, one file for what belongs together (protocol, sections 7.4 and 7.5)."""
