"""Parametrizations: pairs of pure functions, weight -> tensors and tensors -> weight.

A new one is one new file, a child of `Parametrization` that registers itself, and one
import here.
"""

from __future__ import annotations

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
