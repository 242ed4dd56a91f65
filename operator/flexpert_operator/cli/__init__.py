"""The `flexpert` command."""
