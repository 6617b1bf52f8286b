"""Every error that fxprune raises on purpose; each says what, where, both values and what to do.

FxpruneError
├── CaptureError      torch.export could not capture the model
├── RuleError         a rule is malformed or registered twice
├── RefusedError      an operation is refused, with the reason
├── SelectionError    a selection does not fit the program
├── PipelineError     a pipeline text can't be read (the message points with a caret)
├── PassError         a pass failed, and after which others
├── VerifyError       two programs that should agree do not
├── ExportError       a file could not be written, or what was written disagrees
└── UsageError        a command was called wrongly
"""


class FxpruneError(Exception):
    """What fxprune raises on purpose."""


class CaptureError(FxpruneError):
    """The model could not be captured; the message carries torch's reason."""


class RuleError(FxpruneError):
    """A rule is malformed, or registered twice."""


class RefusedError(FxpruneError):
    """An operation is refused, with the reason."""


class SelectionError(FxpruneError):
    """A selection does not fit the program that it was given to."""


class PipelineError(FxpruneError):
    """A pipeline text can't be read."""


class PassError(FxpruneError):
    """A pass failed; the cause says why."""


class VerifyError(FxpruneError):
    """Two programs that should agree do not; `node` is the first that differs, where one was found."""

    def __init__(self, message: str, node: str | None = None) -> None:
        super().__init__(message)
        self.node = node


class ExportError(FxpruneError):
    """A file could not be written, or it computes something else than the program."""


class UsageError(FxpruneError):
    """A command was called wrongly."""
