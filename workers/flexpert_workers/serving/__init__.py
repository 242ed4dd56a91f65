"""What ties the pool to Ray: launchers of workers (actors) and engines (a Serve deployment), and the head's process.

Thin shells: what they start runs and is tested without Ray.
"""
