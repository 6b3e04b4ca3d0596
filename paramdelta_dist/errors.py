"""The exception tree. The exit code of each class is the process's exit code; `retryable` says whether trying again can help.

ParamDeltaError                1   never raised itself
├── UsageError                 2   a flag, a value or a combination that cannot work
│   ├── RecipeError            2   the recipe text is wrong: key, type, size
│   └── OverBudget             2   the plan does not fit the memory budget
├── InputError                 3   what was given does not fit together
│   ├── NotFound               3   no such object
│   ├── CheckpointError        3   a checkpoint is missing, broken or of a kind that cannot be merged
│   ├── HomologyError          3   the models are not homologous; carries the whole report
│   ├── InputChanged           3   an input is no longer the one that was planned
│   ├── OutputOccupied         3   the output folder holds something else
│   │   └── OutputTaken        3   another run took it while this one ran
│   └── NonFinite              3   NaN or infinity in a result
├── CredentialsError           4   not allowed, or no credentials found
├── IntegrityError             5   bytes are not what a receipt or a length says
├── StorageError              75   the store failed in a way that this run cannot mend
│   └── TransientStorageError 75   throttled, timed out, reset: retryable
├── EngineError               75   no workers, or too many lost
├── AlreadyExists              3   a create-only write found the name taken (handled inside, seldom seen)
└── Interrupted              130   Ctrl-C, or cancelled by another shard's failure
"""

from __future__ import annotations

from paramdelta_dist.redaction import redacted


class ParamDeltaError(Exception):
    """A mistake or misfortune that is not a bug of ours: shown as one message, without a traceback, and without any secret."""

    exit_code = 1
    retryable = False
    bytes_read = 0
    """Bytes of inputs that were read for work which this error made void."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(redacted(each) if isinstance(each, str) else each for each in arguments))


class UsageError(ParamDeltaError):
    exit_code = 2


class RecipeError(UsageError):
    pass


class OverBudget(UsageError):
    pass


class InputError(ParamDeltaError):
    exit_code = 3


class NotFound(InputError):
    pass


class CheckpointError(InputError):
    pass


class HomologyError(InputError):
    pass


class InputChanged(InputError):
    pass


class OutputOccupied(InputError):
    pass


class OutputTaken(OutputOccupied):
    pass


class NonFinite(InputError):
    pass


class AlreadyExists(InputError):
    pass


class CredentialsError(ParamDeltaError):
    exit_code = 4


class IntegrityError(ParamDeltaError):
    exit_code = 5


class StorageError(ParamDeltaError):
    exit_code = 75


class TransientStorageError(StorageError):
    retryable = True
    wait_seconds = 0.0
    """After which the store itself says to ask again; 0 where it says nothing."""


class EngineError(ParamDeltaError):
    exit_code = 75


class Interrupted(ParamDeltaError):
    exit_code = 130
