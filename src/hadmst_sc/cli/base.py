"""The application, its error messages, and options that commands share."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

import hadmst_sc
from hadmst_sc.section.arguments import Argument, Consistency

Function = TypeVar("Function", bound=Callable[..., None])

INPUT = (KeyError, ValueError, TypeError, OSError, MemoryError, RecursionError)  # ContractError is a ValueError
BAD_INPUT, INTERRUPTED = 2, 130  # exit statuses


class _Commands(typer.core.TyperGroup):
    """Prints a message in place of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; bad input ends with status 2, anything unexpected with 1, an interrupt with 130."""
        warnings.filterwarnings("ignore", "zarr v3 autosharding", UserWarning)  # announces a default; once per array
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("hadmst-sc: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            # Typer handles usage errors and exits; a closed pipe takes no more output.
            if ctx.params.get("traceback") or hasattr(error, "exit_code") or isinstance(error, BrokenPipeError):
                raise
            typer.echo(f"hadmst-sc: {_said(error)}", err=True)
            raise typer.Exit(BAD_INPUT if isinstance(error, INPUT) else 1) from error


def _said(error: Exception) -> str:
    """Message of an error; an unexpected one also says how to report it."""
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if isinstance(error, INPUT) and message:
        return message
    return (
        f"unexpected {type(error).__name__}: {message}\nPut `--traceback` in front of the command to see where it came "
        f"from, and please report it."
    )


app = typer.Typer(
    name="hadmst-sc",
    cls=_Commands,
    help="Super-resolved gene expression from H&E and spots.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output of an earlier run.")]
Store = Annotated[Path, typer.Argument(help="SpatialData zarr store.", exists=True, file_okay=False)]
ImageKey = Annotated[str, typer.Argument(help="Name of the H&E image in the store.")]
ImageKeys = Annotated[list[str], typer.Argument(help="Names of the H&E images in the store, one for each section.")]
DEVICES = "auto, cpu, cuda, cuda:1, mps."
Device = Annotated[str, typer.Option(help=DEVICES)]

# Shared arguments that a command line cannot take, or takes in another form: type and help.
ONLY_IN_PYTHON = ("features", "cells", "client", "window", "n_samples", "n_steps", "n_genes", "random_state")
AS_TEXT: dict[str, tuple[Any, str]] = {
    "genes": (str | None, "a,b,c or a number: the n most informative."),
    "model": (str, "Bundled name or path; 'none' for the closed form alone."),
    "device": (str, DEVICES),
    "align": (bool, ""),
}
ALIGN_SPOTS = inspect.Parameter(
    "align_spots",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option(
            "--align-spots", help="Where the H&E is misplaced, move the spots instead: the result lies on the H&E."
        ),
    ],
)
KINDS: dict[str, Any] = {  # annotations of the others, by their source
    "bool": bool,
    "int": int,
    "int | None": int | None,
    "float": float,
    "float | None": float | None,
    "str": str,
    "str | None": str | None,
    "Consistency": Consistency,
}
OTHER_NAMES = {"n_metagenes": ("--n-metagenes", "--metagenes")}


def options_of(*groups: Mapping[str, Argument]) -> Callable[[Function], Function]:
    """Give a command the shared arguments of Python functions as options; it collects them by ``**given``."""

    def decorate(command: Function) -> Function:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]
        shared = {name: one for group in groups for name, one in group.items() if name not in ONLY_IN_PYTHON}
        options = []
        for name, one in shared.items():
            kind, text = AS_TEXT.get(name, (None, ""))
            option = typer.Option(*OTHER_NAMES.get(name, ()), help=text or one.text.replace("``", ""))
            annotation: Any = Annotated[kind or KINDS[one.kind], option]  # type: ignore[valid-type]
            options.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=annotation)
            )
        if "align" in shared:
            options.append(ALIGN_SPOTS)

        @functools.wraps(command)
        def call(*args: Any, **given: Any) -> None:
            if given.pop("align_spots", False):
                if not given["align"]:
                    raise typer.BadParameter("`--align-spots` and `--no-align` exclude each other. Leave one out.")
                given["align"] = "spots"
            if "genes" in given:
                given["genes"] = _parse_genes(given["genes"])
            if given.get("model") == "none":
                given["model"] = None
            command(*args, **given)

        call.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return decorate


def _show_version(value: bool) -> None:
    if value:
        typer.echo(hadmst_sc.__version__)
        raise typer.Exit


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None: ...


def names_of(genes: str | None) -> list[str] | None:
    """Names of genes from ``a,b,c``."""
    return None if genes is None else [gene.strip() for gene in genes.split(",") if gene.strip()]


def of_sections(image_key: list[str], given: dict[str, Any]) -> tuple[str | list[str], dict[str, Any]]:
    """One image, or several; for several, a key with commas is a list with one per section."""
    if len(image_key) == 1:
        return image_key[0], given
    keys = [name for name, value in given.items() if name.endswith("_key") and value is not None and "," in value]
    return image_key, given | {name: given[name].split(",") for name in keys}


def _parse_genes(genes: str | None) -> list[str] | int | None:
    return int(genes) if genes is not None and genes.isdecimal() and len(genes) < 10 else names_of(genes)
