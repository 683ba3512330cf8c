"""The control plane: servers take requests in, the service decides with pure commands, the store keeps the result."""
