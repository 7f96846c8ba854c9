"""The exceptions of the project: one tree, one line each."""


class RetrieverError(Exception):
    """A mistake that the user can mend; commands print its message as one line and exit with status 2.

    A message says where, what was found, what is allowed and the next step. Our own mistakes are not of this
    kind: they crash with a traceback.
    """


class ConfigError(RetrieverError):
    """An experiment file, an override or an option is wrong."""


class DataError(RetrieverError):
    """A collection, qrels or run breaks a rule of its format or of `retriever.types`."""


class StoreError(RetrieverError):
    """Stored teacher scores are damaged, locked, or belong to something else."""


class SearchIndexError(RetrieverError):
    """An index is damaged, or does not fit the student or the documents it was given."""


class LockedError(RetrieverError):
    """Another process is changing the same thing; it can be tried again."""


class MissingExtraError(RetrieverError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'the package "{package}" is not installed. Install it with: pip install "retriever-distill[{extra}]"')
        self.missing = package, extra

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str]]:
        return MissingExtraError, self.missing  # raised in another process, it would arrive with its message in place of both
