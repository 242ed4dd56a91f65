"""Which table is in force, the term under which the next may be published, the highest epoch seen, and who leads.

Owned by `controller`. There is no journal: a new controller adopts the highest table found (DESIGN §6, 2).
"""

from flexpert_workers.pool.exceptions import NotGranted, StaleLeader
from flexpert_workers.pool.tables import next_epoch
from flexpert_workers.routing import NO_EPOCH, Epoch, RoutingTable


class TableKeeper:
    """The table in force and the right to publish the next one.

    Attributes:
        term: Granted to this controller; 0 while none is.
        leader: Number of the latest leadership among operators that was heard of; 0 while none was.
    """

    def __init__(self) -> None:
        self.table: RoutingTable | None = None
        self.term = 0
        self.leader = 0
        self._seen = NO_EPOCH

    @property
    def epoch(self) -> Epoch:
        """Of the table in force; `NO_EPOCH` when there is none."""
        return self.table.epoch if self.table is not None else NO_EPOCH

    @property
    def foreign_term(self) -> bool:
        """Whether the table in force was published under an earlier term."""
        return self.table is not None and self.table.epoch.term < self.term

    def grant(self, term: int) -> bool:
        """Take a term; returns whether it is new.

        Raises:
            NotGranted: It is not higher than one that was used before.
        """
        if term == self.term and term > 0:
            return False
        if term <= max(self.term, self._seen.term):
            highest = max(self.term, self._seen.term)
            raise NotGranted(f"term {term} is not higher than {highest}, which was granted before; take a higher one")
        self.term = term
        return True

    def follow(self, leader: int) -> None:
        """Note that `leader` steers from now on; 0 is somebody who is not elected, and steers beside it.

        Raises:
            StaleLeader: A later one has been heard of.
        """
        if 0 < leader < self.leader:
            raise StaleLeader(leader, self.leader)
        self.leader = max(self.leader, leader)

    def saw(self, epoch: Epoch) -> bool:
        """Note an epoch that a worker or engine knows; returns whether it takes away this controller's term."""
        self._seen = max(self._seen, epoch)
        if self.term and epoch.term > self.term:
            self.term = 0
            return True
        return False

    def give_up_term(self) -> None:
        """Somebody else holds a higher term."""
        self.term = 0

    def adopt(self, table: RoutingTable) -> bool:
        """Take a table found on a worker if it is the newest; returns whether it is in force now."""
        self.saw(table.epoch)
        if table.epoch <= self.epoch:
            return False
        self.table = table
        return True

    def next_epoch(self) -> Epoch:
        """A number that no table has had; it counts as used from now on."""
        self._seen = next_epoch(self.term, max(self._seen, self.epoch))
        return self._seen
