"""What the maps of a run depend on, as one string: runs with the same key can continue each other."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from hadmst_sc.contract import Observation
from hadmst_sc.models import HadmstModel
from hadmst_sc.tl._version import version_of


def run_key(obs: Observation, how: Mapping[str, Any]) -> str:
    """One string for a section and the arguments of :func:`~hadmst_sc.tl.predict` that change its result.

    What cannot be compared, such as a callable, gives another string each time.
    """
    return json.dumps(
        {"section": obs.digest(), "version": version_of("hadmst_sc")}
        | {name: _named(how[name]) for name in sorted(how)}
    )


def _named(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest() + repr((value.shape, value.dtype.str))
    if isinstance(value, HadmstModel):  # by what it holds: weights can be trained further after they were loaded
        parts = ((name, _named(tensor.cpu().numpy())) for name, tensor in sorted(value.state_dict().items()))
        return hashlib.sha256(repr(list(parts)).encode()).hexdigest()
    return value if value is None or isinstance(value, str | int | float) else uuid.uuid4().hex
