"""Public Visium sections of 10x Genomics, downloaded on first use and kept in a cache folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pooch
from spatialdata import SpatialData

SERVER = "https://cf.10xgenomics.com/samples/spatial-exp/1.1.0"
PAGES = "https://www.10xgenomics.com/datasets"
LICENCE = "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)"
COUNTS, SPATIAL, IMAGE = "filtered_feature_bc_matrix.h5", "spatial.tar.gz", "image.tif"


class Sample(NamedTuple):
    """A section as 10x Genomics publishes it, with the sha256 of its files."""

    id: str
    page: str
    sha256: dict[str, str]

    def file(self, kind: str) -> str:
        """Name of a file, on the server and in the cache."""
        return f"{self.id}_{kind}"


# 10x Genomics publishes no sha256; these are the ones that squidpy checks (`squidpy/datasets/datasets.yaml`).
SAMPLES = {
    "visium_mouse_brain": Sample(
        "V1_Adult_Mouse_Brain",
        "mouse-brain-section-coronal-1-standard-1-1-0",
        {
            COUNTS: "eb78379e02dcf48036abf05b67233e73ecb0d880787feb82f76ff16f6ce01eb3",
            SPATIAL: "46d6b05ba740f232d6bf4b27b9a8846815851e000985fb878f1364bab04e5bd4",
            IMAGE: "39d0a85a7cecb0bde9ad2566260d571bb49834d26fc443cb32b96475f30668b2",
        },
    ),
    "visium_human_breast_cancer": Sample(
        "V1_Breast_Cancer_Block_A_Section_1",
        "human-breast-cancer-block-a-section-1-1-standard-1-1-0",
        {
            COUNTS: "b3cbb6ead60afad848ebcc07a34835613d9d2d79e416ad8300b210d9de584b65",
            SPATIAL: "415530a9d31172f63fd358d5d1cefb0798698ef9c0e614f52825894cd45c61bf",
            IMAGE: "73a94ca956d1b5c027dcaf1ac42c15fed4d4a12eefee4b4b597e62f34cc5959e",
        },
    ),
    "visium_human_lymph_node": Sample(
        "V1_Human_Lymph_Node",
        "human-lymph-node-1-standard-1-1-0",
        {
            COUNTS: "86fd533eb907450e7125b9820183a0ca73776eeafcc5eddae5695b6aabfd9139",
            SPATIAL: "812808883366ff9623dc8354847a7211b0d922b2bfc4c9359d6e12e993ea6a73",
            IMAGE: "19462aa8f74ed6032738251e2f56931be9047de58bab6ca0373af385aae2ff03",
        },
    ),
}


def visium_mouse_brain(cache_dir: str | Path | None = None, *, full_image: bool = True) -> SpatialData:
    """Download a coronal section of the mouse brain, Visium with H&E, and read it.

    The section is from 10x Genomics, licensed under CC BY 4.0. Needs ``pip install 'hadmst-sc[io]'``.

    Parameters
    ----------
    cache_dir
        Folder of downloaded sections; by default ``$HADMST_CACHE``, else ``hadmst_sc`` in the user's cache folder.
        Later calls read the files from it.
    full_image
        False to leave out the full-resolution H&E, by far the largest file. Then pass the image that ends in
        ``_hires_image`` as ``image_key``.

    Returns
    -------
    SpatialData as returned by ``spatialdata_io.visium``, with

    - images ``visium_mouse_brain_full_image`` (the ``image_key`` of :func:`hadmst_sc.tl.superresolve`),
      ``visium_mouse_brain_hires_image`` and ``visium_mouse_brain_lowres_image``;
    - shapes ``visium_mouse_brain``, the spots, and ``table``, their counts.

    Raises
    ------
    ConnectionError
        If a file cannot be downloaded, or has an unexpected sha256. The message lists the files to download by hand,
        and their folder.
    ImportError
        If spatialdata-io is not installed.

    Examples
    --------
    >>> sdata = hd.datasets.visium_mouse_brain()
    >>> "visium_mouse_brain_full_image" in sdata.images
    True
    """
    return _read("visium_mouse_brain", cache_dir, full_image)


def visium_human_breast_cancer(cache_dir: str | Path | None = None, *, full_image: bool = True) -> SpatialData:
    """Download a section of a human breast cancer (invasive ductal carcinoma), Visium with H&E, and read it.

    The section is from 10x Genomics, licensed under CC BY 4.0. Needs ``pip install 'hadmst-sc[io]'``.

    Parameters
    ----------
    cache_dir, full_image
        As in :func:`visium_mouse_brain`.

    Returns
    -------
    SpatialData as from :func:`visium_mouse_brain`; the ``image_key`` is ``visium_human_breast_cancer_full_image``.

    Raises
    ------
    ConnectionError, ImportError
        As in :func:`visium_mouse_brain`.

    Examples
    --------
    >>> sdata = hd.datasets.visium_human_breast_cancer()
    >>> "visium_human_breast_cancer_full_image" in sdata.images
    True
    """
    return _read("visium_human_breast_cancer", cache_dir, full_image)


def visium_human_lymph_node(cache_dir: str | Path | None = None, *, full_image: bool = True) -> SpatialData:
    """Download a section of a human lymph node, Visium with H&E, and read it.

    The section is from 10x Genomics, licensed under CC BY 4.0. Needs ``pip install 'hadmst-sc[io]'``.

    Parameters
    ----------
    cache_dir, full_image
        As in :func:`visium_mouse_brain`.

    Returns
    -------
    SpatialData as from :func:`visium_mouse_brain`; the ``image_key`` is ``visium_human_lymph_node_full_image``.

    Raises
    ------
    ConnectionError, ImportError
        As in :func:`visium_mouse_brain`.

    Examples
    --------
    >>> sdata = hd.datasets.visium_human_lymph_node()
    >>> "visium_human_lymph_node_full_image" in sdata.images
    True
    """
    return _read("visium_human_lymph_node", cache_dir, full_image)


def _read(name: str, cache_dir: str | Path | None, full_image: bool) -> SpatialData:
    try:
        from spatialdata_io import visium
    except ImportError as error:
        raise ImportError(
            f"`hd.datasets.{name}` needs spatialdata-io to read the section, but it is not installed. "
            f"Run `pip install 'hadmst-sc[io]'`."
        ) from error
    root = Path(cache_dir or os.environ.get("HADMST_CACHE") or pooch.os_cache("hadmst_sc"))
    folder, sample = root.expanduser().resolve() / name, SAMPLES[name]
    _fetch(folder, sample, [COUNTS, SPATIAL, *[IMAGE] * full_image])
    image = sample.file(IMAGE) if full_image else None
    return visium(folder, dataset_id=name, counts_file=sample.file(COUNTS), fullres_image_file=image)


def _fetch(folder: Path, sample: Sample, kinds: list[str]) -> None:
    """Download and unpack what the folder lacks; a file with another sha256 than the known one is replaced."""
    registry = {sample.file(kind): sample.sha256[kind] for kind in kinds}
    cache = pooch.create(path=folder, base_url=f"{SERVER}/{sample.id}/", registry=registry)
    if not all((folder / file).is_file() for file in registry):
        pooch.get_logger().info(f"{folder.name} is of 10x Genomics ({PAGES}/{sample.page}), licensed under {LICENCE}")
    # The server refuses the user agents of some clients.
    downloader = pooch.HTTPDownloader(progressbar=True, headers={"User-Agent": "hadmst_sc"})
    for file in registry:
        unpack = pooch.Untar(extract_dir=".") if file.endswith(SPATIAL) else None
        try:
            cache.fetch(file, processor=unpack, downloader=downloader)
        except (OSError, ValueError) as error:  # no connection, no space, another sha256
            lacking = [one for one in registry if one == file or not (folder / one).is_file()]
            raise ConnectionError(
                f"`hd.datasets.{folder.name}` needs {len(lacking)} file(s) that could not be downloaded "
                f"({type(error).__name__}: {error}). Download them with a browser, put them into {str(folder)!r} under "
                f"their own names, and call the function again:\n" + "\n".join(map(cache.get_url, lacking))
            ) from error
