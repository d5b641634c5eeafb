"""The errors that end a command with one message: a mistake that is the user's to mend, and a run that cannot go on."""


class UserError(ValueError):
    """A mistake in the user's input; the command line prints the message without a traceback and exits with 2."""


class RunFailure(Exception):
    """A run cannot go on, and that is no mistake in the input: one message, no traceback, exit code 1."""
