"""Errors that the user can mend. Each message says what is wrong, where, and what to do next."""


class UserError(Exception):
    """Something the user must fix; the command line prints its message alone and exits with code 2.

    An error from a loader process is raised again by torch with a traceback for its message; what was said stands last.

    >>> str(DataError("Caught DataError in worker 0.\\nTraceback ...\\nwsss.errors.DataError: no image a.jpg\\n"))
    'no image a.jpg'
    """

    def __init__(self, message: str) -> None:
        kind = type(self)
        head, _, said = message.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
        super().__init__(said.strip() if head.startswith("Caught ") else message)


class ConfigError(UserError):
    """The configuration cannot be used."""


class DataError(UserError):
    """A file of the data set is missing, unreadable or contradicts another."""


class MissingArtifact(UserError):
    """A stage needs the result of an earlier stage that has not been made."""


class CorruptArtifact(UserError):
    """A file in the artifact store cannot be read or is not what its name says."""


class Diverged(UserError):
    """A training whose loss is no longer a number."""


class LockTimeout(UserError):
    """Another process works on the same artifact and did not finish in the time allowed."""
