"""Errors of the kernels package, named by what the catcher does next.

    KernelsError
    ├── BadTable              the file is not a latency table we can read: ask for another file
    ├── UnsupportedPrecision  this device and runtime cannot run the pair: offer another precision
    ├── BackendUnavailable    the runtime or device is not here: measure elsewhere
    ├── CompilationFailed     a CUDA kernel does not compile: a defect to report
    │   └── UnsupportedInstruction    …because the architecture lacks an instruction: choose another kernel
    └── NotMeasured           the table has no such row: measure it, or ask for estimates

Every error carries a stable `code`, a sentence with the values, and a `hint` saying what to do.
"""


class KernelsError(Exception):
    """Root of the package's errors: `code` is stable, `hint` says what the caller can do."""

    code = "kernels_error"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadTable(KernelsError):
    code = "bad_latency_table"


class UnsupportedPrecision(KernelsError):
    code = "unsupported_precision"


class BackendUnavailable(KernelsError):
    code = "backend_unavailable"


class NotMeasured(KernelsError):
    code = "not_measured"


class CompilationFailed(KernelsError):
    code = "compilation_failed"


class UnsupportedInstruction(CompilationFailed):
    code = "unsupported_instruction"
