"""The operator, the laptop runtime and the `flexpert` command."""
