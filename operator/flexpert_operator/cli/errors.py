"""What a user can get wrong; `main` prints the message and exits with 1."""


class CliError(Exception):
    """The command cannot be carried out; the message is one line that says what to do."""
