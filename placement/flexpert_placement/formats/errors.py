"""What can be wrong with a file of a placement."""


class InvalidPlacementFile(ValueError):
    """It is damaged, or of another form than it should be; the message says what it should hold."""
