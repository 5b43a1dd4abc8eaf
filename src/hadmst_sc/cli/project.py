"""Commands about the project: demo, self-test, training, benchmark."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

import hadmst_sc
from hadmst_sc.cli.base import Device, Overwrite, app

# Elements of a phantom: a demo may replace an earlier one.
DEMO = (
    *(f"phantom_{name}" for name in ("full_image", "hires_image", "lowres_image", "truth", "regions")),
    "phantom",
    "table",
)


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
            # The digest tells in the card which state of the store it was.
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
