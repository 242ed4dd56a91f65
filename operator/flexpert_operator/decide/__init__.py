"""Pure decisions: what was observed goes in, what is to be done comes out; `reconciler` acts on it."""
