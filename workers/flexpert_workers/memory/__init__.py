"""Expert memory: pages that outlive their worker, the arena they are mapped into, and the process that owns them.

The expert worker maps pages (`backend`, `host`) that it borrows (`lender`) from a page owner (`owner`). Nothing here
imports torch before a tensor is asked for, so that an owner is up at once.
"""
