"""The Coordinator's edge: TLS, the mesh API (gRPC), the client API (REST), settings and the process itself."""
