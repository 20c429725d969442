"""Parametrizations: pairs of pure functions, weight -> tensors and tensors -> weight.

``opdf.parametrizations()`` lists them, with what each is and adds, its options and its source: a
value that prints as a table. A new one is one new file, a child of `Parametrization` that registers
itself, and one import here.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

import lazy_loader

from opdf_compile.parametrizations import delta as delta
from opdf_compile.parametrizations import do_conv as do_conv
from opdf_compile.parametrizations import gains as gains
from opdf_compile.parametrizations import ham as ham
from opdf_compile.parametrizations import hyperball as hyperball
from opdf_compile.parametrizations import md as md
from opdf_compile.parametrizations import mpo as mpo
from opdf_compile.parametrizations import orepa as orepa
from opdf_compile.parametrizations import powerprop as powerprop
from opdf_compile.parametrizations import repopt as repopt
from opdf_compile.parametrizations import shared as shared
from opdf_compile.parametrizations import spectral as spectral
from opdf_compile.parametrizations import svd as svd
from opdf_compile.parametrizations import wide as wide

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

if TYPE_CHECKING:
    from opdf_compile.parametrizations.listing import Listing


class _Parametrizations(ModuleType):
    """This package, which is called to list what is in it: ``opdf.parametrizations()``.

    The name is that of the package and, by contract, that of the function.
    """

    def __call__(self) -> Listing:
        """All registered parametrizations and branch forms; see `list_parametrizations`."""
        from opdf_compile.parametrizations.listing import list_parametrizations

        return list_parametrizations()


sys.modules[__name__].__class__ = _Parametrizations
