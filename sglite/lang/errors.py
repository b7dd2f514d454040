"""What a program's failures look like to its reader.

A failed request poisons its stream. Whoever reads afterwards gets one of these, with the output that failed, the
request it was, the end of its prompt, and the back end's own exception as ``__cause__``. Nothing hangs and no cause
is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

_PROMPT_TAIL = 60


class BackendError(RuntimeError):
    """A back end refused a request, or could not be reached; the message is the back end's own."""


class Unsupported(BackendError):
    """The back end has no such ability (an image on a text model, say)."""


class SymbolicValueError(TypeError):
    """A value that is not known while a program is traced was needed to go on."""


class BlockingReadError(RuntimeError):
    """An async program read what does not exist yet without ``await``; the message has the line to write."""


class Incomplete(ValueError):
    """A typed output was cut off by its token limit. ``text``: what there is; ``partial``: what it says so far."""

    def __init__(self, message: str, *, text: str, partial: object) -> None:
        super().__init__(message)
        self.text = text
        self.partial = partial


class CheckFailed(ValueError):
    """No attempt passed a gen's ``check``. ``attempts``: the texts that were refused and why."""

    def __init__(self, message: str, *, attempts: list[tuple[str, str]]) -> None:
        super().__init__(message)
        self.attempts = attempts


class DeadlineExceeded(RuntimeError):
    """A program did not finish within its deadline."""


class BudgetExceeded(RuntimeError):
    """A program generated as many tokens as it was given."""


class ProgramError(RuntimeError):
    """A program's stream failed; ``variable`` and ``request`` say where, ``__cause__`` why.

    ``partial_text`` is the stream's text up to the failure.
    """

    def __init__(self, message: str, *, variable: str | None, request: str, partial_text: str) -> None:
        RuntimeError.__init__(self, message)
        self.variable = variable
        self.request = request
        self.partial_text = partial_text


class VariableError(ProgramError, KeyError):
    """A variable that was read has no value, because its request or an earlier one failed."""

    __str__ = RuntimeError.__str__  # KeyError would show the message in quotes


class OutputIncomplete(VariableError, Incomplete):
    """A typed output that was read was cut off by its token limit."""

    text: str = ""
    partial: object = None


class OutputRefused(VariableError, CheckFailed):
    """No attempt of an output that was read passed its check."""

    attempts: list[tuple[str, str]] = []  # noqa: RUF012  (set on every instance)


@dataclass(frozen=True)
class Failure:
    """Why a stream stopped: ``request`` as the user wrote it, the variable it would have filled, its cause."""

    request: str
    variable: str | None
    cause: BaseException
    text: str

    def _where(self) -> str:
        tail = self.text[-_PROMPT_TAIL:]
        dots = "..." if len(self.text) > _PROMPT_TAIL else ""
        return f"{self.request} after {dots + tail!r}"

    def _why(self) -> str:
        return str(self.cause) or type(self.cause).__name__

    def error(self) -> ProgramError:
        """A fresh exception that says which request failed and why."""
        error = ProgramError(
            f"{self._where()}: {self._why()}",
            variable=self.variable,
            request=self.request,
            partial_text=self.text,
        )
        error.__cause__ = self.cause
        return error

    def variable_error(self, name: str) -> VariableError:
        """A fresh exception for reading ``name``, which this failure left without a value."""
        own = name == self.variable
        what = f"output {name!r} failed" if own else f"{name!r} has no value, an earlier request failed"
        kind: type[VariableError] = VariableError
        if isinstance(self.cause, Incomplete):
            kind = OutputIncomplete
        elif isinstance(self.cause, CheckFailed):
            kind = OutputRefused
        message = f"{what}: {self._where()}: {self._why()}"
        error = kind.__new__(kind)
        ProgramError.__init__(error, message, variable=name, request=self.request, partial_text=self.text)
        if isinstance(error, OutputIncomplete) and isinstance(self.cause, Incomplete):
            error.text, error.partial = self.cause.text, self.cause.partial
        elif isinstance(error, OutputRefused) and isinstance(self.cause, CheckFailed):
            error.attempts = self.cause.attempts
        error.__cause__ = self.cause
        return error
