"""The plugin host: interfaces, hooks, discovery, validation."""
