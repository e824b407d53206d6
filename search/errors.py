"""Errors of the search package, named by what the catcher does next.

    SearchError
    ├── BadSubmission   the model, data or request is wrong: the user must change it
    ├── UnsupportedOp   the graph holds an op we cannot differentiate: use a forward-only metric
    ├── NotEnoughData   too few samples for what was asked: bring more
    └── AuditFailed     the runtime did not run what was exported: drop that assembly, keep the study

Every error carries a stable `code`, a message with the values, and a `hint` saying what to do.
An unreachable budget is no error; it is an answer (`search.allocation.Infeasible`).
"""


class SearchError(Exception):
    """Root of the package's errors: `code` is stable, `hint` says what the caller can do."""

    code = "search_error"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadSubmission(SearchError):
    code = "bad_submission"


class UnsupportedOp(SearchError):
    code = "op_unsupported"


class NotEnoughData(SearchError):
    code = "not_enough_data"


class AuditFailed(SearchError):
    code = "audit_failed"
