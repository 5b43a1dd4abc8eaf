"""Commands about a section and its results."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from hadmst_sc.cli.base import ImageKey, ImageKeys, Overwrite, Store, app, names_of, of_sections, options_of
from hadmst_sc.inference.settings import SETTINGS
from hadmst_sc.section.abundances import SPOTS

Genes = Annotated[str | None, typer.Option(help="a,b,c; default: all.")]
KeyAdded = Annotated[str, typer.Option(help="Name of the result.")]


@app.command()
@options_of(SPOTS, SETTINGS)
def superresolve(
    store: Store,
    image_key: ImageKeys,
    cells_key: Annotated[str | None, typer.Option(help="Cells or nuclei: shapes, points or labels.")] = None,
    key_added: Annotated[str, typer.Option(help="Name of the result.")] = "superres",
    output: Annotated[Path | None, typer.Option(help="Write to this store instead of into STORE.")] = None,
    overwrite: Overwrite = False,
    **given: Any,
) -> None:
    """Super-resolve sections; writes image, standard deviation, labels and table to STORE, or to another store."""
    if output is not None:
        from hadmst_sc.io.write import check_free, write_whole

        check_free(output, overwrite=overwrite, source=store)
    from hadmst_sc import tl
    from hadmst_sc.io import open_store

    started = perf_counter()
    images, given = of_sections(image_key, given | {"cells_key": cells_key})
    given |= {"key_added": key_added, "overwrite": overwrite, "copy": output is not None}
    result = tl.superresolve(open_store(store), images, **given)
    if output is not None:
        write_whole(result, output, overwrite=overwrite)
    what = f"{key_added!r}" + f" of {len(image_key)} sections" * (len(image_key) > 1)
    typer.echo(f"wrote {what} to {output or store} in {perf_counter() - started:.1f} s")


@app.command()
@options_of(SPOTS, {"align": SETTINGS["align"]})
def validate(
    store: Store,
    image_key: ImageKeys,
    cells_key: Annotated[str | None, typer.Option(help="Cells or nuclei: shapes, points or labels.")] = None,
    **given: Any,
) -> None:
    """Check if sections can be super-resolved, report cost and warnings; status 1 if not."""
    from hadmst_sc import pp
    from hadmst_sc.io import open_store

    images, given = of_sections(image_key, given | {"cells_key": cells_key})
    report = pp.validate(open_store(store), images, **given)
    typer.echo(report)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
@options_of(SPOTS, {name: SETTINGS[name] for name in ("model", "align", "device")})
def reliability(
    store: Store,
    image_key: ImageKey,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also with a shuffled and a shifted image, as controls.")
    ] = False,
    **given: Any,
) -> None:
    """Show which genes of a section can be predicted at held-out spots, the most reliable first."""
    from hadmst_sc import tl
    from hadmst_sc.io import open_store

    found = tl.reliability(open_store(store), image_key, controls=controls, **given)
    typer.echo(found.sort_values("reliability", ascending=False).to_string(float_format="{:.2f}".format))


@app.command()
def plot(
    store: Store,
    picture: Annotated[Path, typer.Argument(help="The file; its ending is the format: .png, .pdf, .svg, ...")],
    genes: Annotated[str | None, typer.Option(help="a,b,c; default: the three whose maps vary most.")] = None,
    key_added: KeyAdded = "superres",
    overwrite: Overwrite = False,
) -> None:
    """Draw a result: H&E, measured spots, map and standard deviation of some genes."""
    from hadmst_sc.io.export import new_file

    with new_file(picture, overwrite=overwrite) as file:
        import matplotlib

        matplotlib.use("agg")
        from hadmst_sc import pl
        from hadmst_sc.io import open_store

        axes = pl.superresolve(open_store(store), names_of(genes), key_added=key_added)
        axes[0, 0].figure.savefig(file, dpi=150, format=picture.suffix[1:] or "png")
    typer.echo(f"wrote {picture}")


@app.command()
def export(
    store: Store,
    path: Annotated[Path, typer.Argument(help="The file; its ending is the format: .ome.tif, .h5ad or .csv.gz.")],
    genes: Genes = None,
    key_added: KeyAdded = "superres",
    overwrite: Overwrite = False,
) -> None:
    """Write a result to a file for QuPath, napari, squidpy, R or a spreadsheet."""
    from hadmst_sc import io

    io.export(io.open_store(store), path, genes=names_of(genes), key_added=key_added, overwrite=overwrite)
    typer.echo(f"wrote {path}")


@app.command()
def cells(
    store: Store,
    cells_key: Annotated[str, typer.Argument(help="Cells or nuclei in the store: shapes, points or labels.")],
    path: Annotated[Path, typer.Argument(help="The file; its ending is the format: .geojson, .h5ad or .csv.gz.")],
    genes: Genes = None,
    key_added: KeyAdded = "superres",
    overwrite: Overwrite = False,
) -> None:
    """Write the expected counts of each cell of a result to a file for QuPath, scanpy, R or a spreadsheet."""
    from hadmst_sc import io, tl
    from hadmst_sc.io.export import check_new

    check_new(path, overwrite=overwrite)
    sdata = io.open_store(store)
    found = tl.to_cells(sdata, cells_key, genes=names_of(genes), key_added=key_added)
    io.export(sdata, path, cells=found, key_added=key_added, overwrite=overwrite)
    typer.echo(f"wrote {found.n_obs:,} cells to {path}")
