"""Makes CTRAIN run beside auto_LiRPA 0.3, the newest that pip gives: imported before CTRAIN, in an environment of its
own (`compare/epochs.py` says how to make one)."""

import importlib.util
import sys
from pathlib import Path
from unittest.mock import MagicMock

# auto_LiRPA 0.3 wants names of a torch of 2022: what our own package supplies for it, by itself.
_COMPAT = Path(__file__).parents[2] / "etb_plugin" / "lirpa" / "compat.py"
_spec = importlib.util.spec_from_file_location("compat", _COMPAT)
compat = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(compat)
compat.apply()

# CTRAIN is written for a later auto_LiRPA. BoundRelu is elsewhere in 0.3; the copy of abCROWN that its evaluation
# imports lacks more, and no training needs it; Shi's initialisation and regularisers look for the later one's names of
# nodes, and loss fusion for its operations: these are left out, here and on our side.
import auto_LiRPA.operators.activation  # noqa: E402

sys.modules["auto_LiRPA.operators.relu"] = auto_LiRPA.operators.activation
sys.modules["CTRAIN.complete_verification.abCROWN.verify"] = MagicMock()

from auto_LiRPA import BoundedModule  # noqa: E402
from CTRAIN.train.certified import crown_ibp, shi_ibp  # noqa: E402, F401

compat.patch_bounded_module(BoundedModule)
for name in ("shi_ibp", "crown_ibp"):
    loop = sys.modules[f"CTRAIN.train.certified.{name}"]
    loop.ibp_init_shi = lambda *_: None
    loop.get_shi_regulariser = lambda **_: 0.0
