"""Error types, and a list of problems so that all errors of an input are reported at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hadmst_sc.section.arguments import Requirement, complaints

_heard: ContextVar[list[str] | None] = ContextVar("hadmst_sc warnings", default=None)


class _Logger(logging.LoggerAdapter[logging.Logger]):
    """The logger ``hadmst_sc``; inside :func:`warnings_heard` warnings are collected, and the logger is unchanged."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Pass a message to the logger, or collect it if it is a warning inside :func:`warnings_heard`."""
        heard = _heard.get()
        if heard is None:
            super().log(level, msg, *args, **kwargs | {"stacklevel": kwargs.get("stacklevel", 1) + 1})
        elif level >= logging.WARNING:
            heard.append(str(msg) % args if args else str(msg))


logger = _Logger(logging.getLogger("hadmst_sc"))


@contextmanager
def warnings_heard() -> Iterator[list[str]]:
    """Collect warnings of this thread in a list instead of logging them, regardless of the logger's level."""
    heard: list[str] = []
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)


class ContractError(ValueError):
    """Several problems with one input, all reported at once, each with its place and its remedy."""

    def __init__(self, what: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        number = f"{len(self.problems)} problem" + "s" * (len(self.problems) != 1)
        super().__init__("\n".join([f"{what} ({number}):", *(f"  {problem}" for problem in self.problems)]))


class MissingKeyError(KeyError):
    """A missing key; unlike ``KeyError`` it prints its message as written, not its ``repr``."""

    def __str__(self) -> str:
        return str(self.args[0])


class WrongTypeError(TypeError):
    """A user's argument of a wrong type; any other ``TypeError`` is an error in the code."""


class Problems:
    """A list of problems that is raised as one exception.

    Parameters
    ----------
    what
        First line of the message if there are several problems.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.found: list[tuple[type[Exception], str]] = []

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(self, message: str, kind: type[Exception] = ContractError) -> None:
        """Add a problem; ``kind`` is the exception that is raised if it is the only one."""
        self.found.append((kind, message))

    def missing(self, argument: str, value: object, place: str, available: list[str]) -> None:
        """Add a problem for a key that is not in ``place``."""
        remedy = f" Try `{argument}={available[0]!r}`." if len(available) == 1 else ""
        self.add(f"`{argument}={value!r}` is not in `{place}`. Available: {available}.{remedy}", MissingKeyError)

    def check(self, values: Mapping[str, Any], requirements: Mapping[str, tuple[Requirement, Any]]) -> set[str]:
        """Add problems for arguments of a wrong type or value, and return their names."""
        found = complaints(values, requirements)
        for message in found.values():
            self.add(message, ValueError)
        return set(found)

    @contextmanager
    def gathered(self, *kinds: type[Exception]) -> Iterator[None]:
        """Add exceptions that are raised inside (one of ``kinds`` or a ``ContractError``) instead of raising them."""
        try:
            yield
        except ContractError as error:
            self.found += [(ContractError, problem) for problem in error.problems]
        except kinds as error:
            self.add(str(error), type(error))

    @contextmanager
    def readable(self, place: str) -> Iterator[None]:
        """Add a problem if reading from a store fails with any exception other than ``MemoryError``."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - codecs and file systems raise all kinds of exceptions
            cause = f"{type(error).__name__}: {error}"
            self.add(f"{place}: cannot be read ({cause}). The store is damaged or missing. Restore it from its source.")

    def raise_if_any(self) -> None:
        """Raise a single problem as its own kind, several as one :class:`~hadmst_sc.section.errors.ContractError`."""
        if not self.found:
            return
        kind, message = self.found[0]
        if len(self.found) == 1 and kind is not ContractError:
            raise kind(message)
        raise ContractError(self.what, [message for _, message in self.found])
