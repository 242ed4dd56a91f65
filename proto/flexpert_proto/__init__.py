"""Wire formats and the names that every part shares; imports nothing of ours."""
