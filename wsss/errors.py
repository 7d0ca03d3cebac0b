"""Errors that the user can mend. Each message says what is wrong, where, and what to do next."""


class UserError(Exception):
    """Something the user must fix; the command line prints its message alone and exits with code 2."""


class ConfigError(UserError):
    """The configuration cannot be used."""


class DataError(UserError):
    """A file of the data set is missing, unreadable or contradicts another."""


class MissingArtifact(UserError):
    """A stage needs the result of an earlier stage that has not been made."""


class CorruptArtifact(UserError):
    """A file in the artifact store cannot be read or is not what its name says."""


class LockTimeout(UserError):
    """Another process works on the same artifact and did not finish in the time allowed."""
