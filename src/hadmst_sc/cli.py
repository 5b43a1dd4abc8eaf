"""The command line, ``hadmst-sc``: a thin layer over the Python API.

Heavy modules load inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, TypeVar

import typer

import hadmst_sc
from hadmst_sc.inference.settings import SETTINGS
from hadmst_sc.section.abundances import SPOTS
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
# Elements of a phantom: a demo may replace an earlier one.
DEMO = (
    *(f"phantom_{name}" for name in ("full_image", "hires_image", "lowres_image", "truth", "regions")),
    "phantom",
    "table",
)
Store = Annotated[Path, typer.Argument(help="SpatialData zarr store.", exists=True, file_okay=False)]
ImageKey = Annotated[str, typer.Argument(help="Name of the H&E image in the store.")]
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

        @functools.wraps(command)
        def call(*args: Any, **given: Any) -> None:
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


@app.command()
@options_of(SPOTS, SETTINGS)
def superresolve(
    store: Store,
    image_key: ImageKey,
    cells_key: Annotated[str | None, typer.Option(help="Cells or nuclei: shapes, points or labels.")] = None,
    key_added: Annotated[str, typer.Option(help="Name of the result.")] = "superres",
    output: Annotated[Path | None, typer.Option(help="Write to this store instead of into STORE.")] = None,
    overwrite: Overwrite = False,
    **given: Any,
) -> None:
    """Super-resolve a section; writes image, standard deviation, labels and table to STORE, or to another store."""
    if output is not None:
        from hadmst_sc.io.write import check_free, write_whole

        check_free(output, overwrite=overwrite, source=store)
    from hadmst_sc import tl
    from hadmst_sc.io import open_store

    started = perf_counter()
    given |= {"cells_key": cells_key, "key_added": key_added, "overwrite": overwrite, "copy": output is not None}
    result = tl.superresolve(open_store(store), image_key, **given)
    if output is not None:
        write_whole(result, output, overwrite=overwrite)
    typer.echo(f"wrote {key_added!r} to {output or store} in {perf_counter() - started:.1f} s")


@app.command()
@options_of(SPOTS)
def validate(
    store: Store,
    image_key: ImageKey,
    cells_key: Annotated[str | None, typer.Option(help="Cells or nuclei: shapes, points or labels.")] = None,
    align: Annotated[bool, typer.Option(help="Also estimate where the H&E is relative to the spots.")] = True,
    **given: Any,
) -> None:
    """Check if a section can be super-resolved, report cost and warnings; status 1 if it cannot."""
    from hadmst_sc import pp
    from hadmst_sc.io import open_store

    report = pp.validate(open_store(store), image_key, cells_key=cells_key, align=align, **given)
    typer.echo(report)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML file.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and weights.")] = Path("runs"),
    shared: Annotated[
        Path | None, typer.Option(help="Folder of bank and lessons, for several runs; default: --out.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Resume from the last checkpoint in the folder.")] = True,
    weights: Annotated[
        Path | None, typer.Option(help="Path of the trained model; default: model.safetensors in --out.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be trained, then stop.")] = False,
) -> None:
    """Train a model from a configuration file."""
    from hadmst_sc.train import loop
    from hadmst_sc.train.bank import check_sections
    from hadmst_sc.train.config import load_config
    from hadmst_sc.train.fine_tune import train_and_save

    settings = load_config(config)
    if dry_run:
        sections = _training_sections(settings, config.parent, public=False)
        check_sections(sections, settings)
        parameters = sum(p.numel() for p in loop.build_model(settings).parameters())
        crops = f"{settings.sections} sections × {settings.genes} genes × {settings.crop}² bins"
        typer.echo(json.dumps(settings.to_dict(), indent=2))
        typer.echo(f"parameters   {parameters:,}\nsteps        {settings.steps:,} of {crops}")
        for name, section in sections.items():
            typer.echo(f"section      {name}: {section}")
        return
    logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("hadmst_sc").setLevel(logging.INFO)  # not others: readers log every element
    sections = _training_sections(settings, config.parent)
    target = weights or out / "model.safetensors"
    train_and_save(settings, out, sections=sections, shared=shared, weights=target, resume=resume)
    typer.echo(f"wrote {target} and its card {target.with_suffix('.json').name}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def benchmark(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Option(help="Folder of the benchmarks, in a checkout.")] = Path("benchmarks"),
) -> None:
    """Run the benchmark of a checkout and write its report (--profile quick: in minutes).

    The first word may name another script of the folder: report, scale, registration, hidden_tissue, laws,
    mouse_brain, given_cells, nuclei or card. Everything else is passed to the script (try NAME --help).
    """
    arguments = list(ctx.args)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
    script = folder / name if (folder / name / "__main__.py").is_file() else folder / f"{name}.py"
    if not script.exists():
        known = sorted(
            {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__main__.py")}
        )
        raise ValueError(
            f"`benchmark` needs a checkout of the project, but {script} does not exist. Run it in the root of a "
            f"checkout, or pass `--folder`. Available: {known}."
        )
    raise typer.Exit(subprocess.run([sys.executable, str(script), *arguments], check=False).returncode)


def _training_sections(settings: Any, folder: Path, *, public: bool = True) -> dict[str, Any]:
    """Read the real sections of a configuration before training starts; all problems are raised at once."""
    from hadmst_sc.datasets.own import own_section
    from hadmst_sc.datasets.public import cell_sections, observe, observe_cells
    from hadmst_sc.section.errors import ContractError
    from hadmst_sc.train.bank import RealSection

    sections, problems = {}, []
    for number, wanted in enumerate(settings.bank.real, 1):
        if hasattr(wanted, "path"):
            arguments = vars(wanted) | {"path": folder / wanted.path}
            try:
                section = RealSection(*own_section(**arguments))
            except (KeyError, ValueError, FileNotFoundError) as error:
                problems.append(f"[[bank.real]] {number}, {wanted.path}: {error}")
                continue
            # The digest distinguishes distillations of earlier states of the store.
            sections[f"{Path(wanted.path).stem}_{wanted.bin_um:g}_{section.digest}"] = section
        elif public:
            if wanted.name in cell_sections():
                obs, truth, _ = observe_cells(wanted.name, bin_um=wanted.bin_um)
            else:
                obs, truth = observe(wanted.name, bin_um=wanted.bin_um), None
            sections[f"{wanted.name}_{wanted.bin_um:g}"] = RealSection(obs, truth)
    if problems:
        raise ContractError("`bank.real` names sections that cannot be trained on", problems)
    return sections


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the store and the picture.")] = Path("demo_output"),
    n_genes: Annotated[int, typer.Option(min=1, help="Genes of the phantom.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the phantom and the samples.")] = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Generate a section, super-resolve it, and write a SpatialData store and a picture."""
    store, picture = output / "section.zarr", output / "superres.png"
    from hadmst_sc.io.write import check_free, write_whole

    check_free(store, overwrite=overwrite, also=DEMO)
    if picture.exists() and not overwrite:
        raise ValueError(f"`--output` needs a free path, but {picture} exists. Try `hadmst-sc demo --overwrite`.")
    import matplotlib

    matplotlib.use("agg")
    from hadmst_sc import pl, tl
    from hadmst_sc.datasets.visium import phantom

    output.mkdir(parents=True, exist_ok=True)
    started = perf_counter()
    sdata = phantom(seed, n_genes=n_genes)
    table = sdata.tables["table"]
    typer.echo(f"phantom         {table.n_obs} spots × {table.n_vars} genes   {perf_counter() - started:6.1f} s")

    started = perf_counter()
    tl.superresolve(sdata, "phantom_full_image", device=device)
    bins = sdata.tables["superres_table"]
    typer.echo(f"super-resolved  {bins.n_obs} bins × {bins.n_vars} genes   {perf_counter() - started:6.1f} s")

    axes = pl.superresolve(sdata)
    axes[0, 0].figure.savefig(picture, dpi=150)
    write_whole(sdata, store, overwrite=overwrite, also=DEMO)
    typer.echo(f"store           {store}  (spatialdata.read_zarr)\npicture         {picture}")


@app.command()
def doctor(
    model: Annotated[str, typer.Option(help="Bundled name or path.")] = "default", device: Device = "auto"
) -> None:
    """Show versions and device, and check that the model gives the same output here as when it was saved."""
    from importlib.metadata import version

    import torch

    from hadmst_sc.models import weights

    typer.echo(f"hadmst_sc    {hadmst_sc.__version__}\npython       {sys.version.split()[0]}")
    for package in ("torch", "spatialdata", "anndata", "zarr", "numpy"):
        typer.echo(f"{package:<12} {version(package)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    typer.echo(f"device       {device} ({torch.get_num_threads()} threads)")
    try:
        loaded = weights.load_model(model, device)
        card = None if model in weights.bundled_models() else weights.read_card(model)
        deviation = weights.self_test(loaded, card)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        typer.echo(f"model        {model}: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"model        {model}: ok, relative deviation {deviation:.1e}")


def _parse_genes(genes: str | None) -> list[str] | int | None:
    if genes is None:
        return None
    is_number = genes.isdecimal() and len(genes) < 10
    return int(genes) if is_number else [gene.strip() for gene in genes.split(",") if gene.strip()]


def main() -> None:
    """Entry point of ``hadmst-sc``."""
    app()
