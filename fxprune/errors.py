"""Exception hierarchy of fxprune: a message states what is wrong, where, both values and what to do.

FxpruneError
├── CaptureError      torch.export could not capture the model
├── GuardError        inputs have sizes for which a captured graph does not hold
├── RuleError         a rule is malformed or registered twice
├── RefusedError      an operation is refused, with the reason
├── SelectionError    a selection is invalid, or does not fit the program
├── PipelineError     a pipeline text can't be read (the message points with a caret)
├── PassError         a pass failed, and after which others
├── VerifyError       two programs that should agree do not
├── ExportError       a file could not be written, or what was written disagrees
└── UsageError        a command was called wrongly
"""


class FxpruneError(Exception):
    """Base class of the errors that fxprune raises on purpose."""


class CaptureError(FxpruneError):
    """Failure to capture a model; the message contains torch's reason."""


class GuardError(FxpruneError):
    """Inputs of sizes that torch.export ruled out when it traced the graph: it would answer, and be wrong."""


class RuleError(FxpruneError):
    """Malformed rule, or a second rule for an operator."""


class RefusedError(FxpruneError):
    """Refusal of an operation, with the reason."""


class SelectionError(FxpruneError):
    """Selection that is invalid, or does not fit the program that it was given to."""


class PipelineError(FxpruneError):
    """Pipeline text that can't be read; the message points at the place with a caret."""


class PassError(FxpruneError):
    """Failure of a pass; the cause is the original error."""


class VerifyError(FxpruneError):
    """Disagreement of two programs that should agree; `node` is the first that differs, where one was found."""

    def __init__(self, message: str, node: str | None = None) -> None:
        super().__init__(message)
        self.node = node


class ExportError(FxpruneError):
    """Failure to write a file, or a file that disagrees with the program."""


class UsageError(FxpruneError):
    """Wrong call of a command."""
