"""The one error that is the user's to mend: its message states the place, the expectation, the value and the remedy."""


class UserError(ValueError):
    """A mistake in the user's input; the command line prints the message without a traceback and exits with 2."""
