"""Collect what is wrong with an input, so that the user mends it in one go."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hadmst_sc.section.arguments import Requirement, complaints

_heard: ContextVar[list[str] | None] = ContextVar("hadmst_sc warnings", default=None)


class _Logger(logging.LoggerAdapter[logging.Logger]):
    """The logger ``hadmst_sc``, except where :func:`warnings_heard` listens: nothing of the logger itself changes."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Hand a message on, or keep a warning for who listens."""
        heard = _heard.get()
        if heard is None:
            super().log(level, msg, *args, **kwargs | {"stacklevel": kwargs.get("stacklevel", 1) + 1})
        elif level >= logging.WARNING:
            heard.append(str(msg) % args if args else str(msg))


logger = _Logger(logging.getLogger("hadmst_sc"))


@contextmanager
def warnings_heard() -> Iterator[list[str]]:
    """Inside, in this thread, warnings go into the list and nowhere else, whatever the logger's level."""
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
    """A key that is not there; unlike ``KeyError`` it prints its message as written, not its ``repr``."""

    def __str__(self) -> str:
        return str(self.args[0])


class WrongTypeError(TypeError):
    """An argument of a wrong type, as its user needs it told; any other ``TypeError`` is a fault of the code."""


class Problems:
    """A list of problems that ends in one exception.

    Parameters
    ----------
    what
        First line of the message when there are several.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.found: list[tuple[type[Exception], str]] = []

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(self, message: str, kind: type[Exception] = ContractError) -> None:
        """Note a problem; ``kind`` is the exception it becomes when it is the only one."""
        self.found.append((kind, message))

    def missing(self, argument: str, value: object, place: str, available: list[str]) -> None:
        """Note a key that is not in ``place``."""
        remedy = f" Try `{argument}={available[0]!r}`." if len(available) == 1 else ""
        self.add(f"`{argument}={value!r}` is not in `{place}`. Available: {available}.{remedy}", MissingKeyError)

    def check(self, values: Mapping[str, Any], requirements: Mapping[str, tuple[Requirement, Any]]) -> set[str]:
        """Note arguments of a wrong type or value, and return their names."""
        found = complaints(values, requirements)
        for message in found.values():
            self.add(message, ValueError)
        return set(found)

    @contextmanager
    def gathered(self, *kinds: type[Exception]) -> Iterator[None]:
        """Note what is raised inside, one of ``kinds`` or several problems at once, instead of raising it."""
        try:
            yield
        except ContractError as error:
            self.found += [(ContractError, problem) for problem in error.problems]
        except kinds as error:
            self.add(str(error), type(error))

    @contextmanager
    def readable(self, place: str) -> Iterator[None]:
        """Note that what lies in a store cannot be read, whatever its library raises; memory is another matter."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - codecs and file systems raise what they like
            told = f"{type(error).__name__}: {error}"
            self.add(f"{place}: cannot be read ({told}). The store is damaged, or gone. Get it anew from its source.")

    def raise_if_any(self) -> None:
        """Raise the single problem as its own kind, several as one :class:`~hadmst_sc.section.errors.ContractError`."""
        if not self.found:
            return
        kind, message = self.found[0]
        if len(self.found) == 1 and kind is not ContractError:
            raise kind(message)
        raise ContractError(self.what, [message for _, message in self.found])
