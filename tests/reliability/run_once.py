"""One backed run in a process of its own, which the tests kill or starve; `STORE` and `MAX_FILE` come from outside."""

import resource

import spatialdata as sd

from hadmst_sc import tl

if MAX_FILE:  # noqa: F821 - as if the disk were full: Python turns the signal into an OSError
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, MAX_FILE))  # noqa: F821
tl.superresolve(
    sd.read_zarr(STORE),  # noqa: F821
    "phantom_full_image",
    bin_um=20.0,
    batch_size=1,
    overwrite=True,
    show_progress_bar=False,
    align=False,
    gate=False,
    n_jobs=1,
)
