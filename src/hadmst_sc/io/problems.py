"""Collect what is wrong with an input, so that the user mends it in one go."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hadmst_sc.arguments import Requirement, complaints
from hadmst_sc.contract import ContractError

logger = logging.getLogger("hadmst_sc")


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
        """Note arguments of a wrong type or value; see :func:`~hadmst_sc.arguments.complaints`. Returns their names."""
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
        """Raise the single problem as its own kind, several as one :class:`~hadmst_sc.contract.ContractError`."""
        if not self.found:
            return
        kind, message = self.found[0]
        if len(self.found) == 1 and kind is not ContractError:
            raise kind(message)
        raise ContractError(self.what, [message for _, message in self.found])
