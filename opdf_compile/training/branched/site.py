"""A site while it trains: the student's convolution and norm, and the branches beside them.

    at the convolution's place   BranchedSite    norm(conv(x)) + sum branch(x)
    at the norm's place          AfterSite       what the norm's own class does after normalising

The site computes all of it where the convolution was, and the norm alone read that, so no value is
handed from one module to another behind anybody's back.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from opdf_compile.parametrizations import SiteSpec, SiteTensors, folded_site
from opdf_compile.training.branched.layers import branch_layers


class BranchedSite(nn.Module):
    """A convolution, its norm and their branches.

    Attributes:
        key: Name of the convolution's weight in the student.
        norm_place: Name of the norm in the student.
        spec: What the branches are.
        conv: The student's own convolution.
        norm: The student's own norm, or what `convert_sync_batchnorm` made of it.
        branches: By name.
    """

    def __init__(
        self, key: str, norm_place: str, spec: SiteSpec, conv: nn.Module, norm: nn.Module
    ) -> None:
        """Take the student's modules as they are."""
        super().__init__()
        self.key = key
        self.norm_place = norm_place
        self.spec = spec
        self.conv = conv
        self.norm = norm
        layers = branch_layers(key, spec, next(norm.parameters())).train(norm.training)
        if isinstance(norm, nn.SyncBatchNorm):
            # All norms of a site see the batch of all ranks, or none does.
            convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
            layers = convert(layers, norm.process_group)
        self.branches = layers

    def __getattr__(self, name: str) -> Any:
        """What a student reads of its convolution: ``out_channels``, ``weight``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if "conv" not in modules:
                raise
            return getattr(modules["conv"], name)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, *sizes) -> (batch, out, *sizes)."""
        out: Tensor = self.norm(self.conv(x))
        for layers in self.branches.values():
            out = out + layers(x)
        return out

    def folded(self) -> SiteTensors:
        """The numbers of the convolution and the norm that do all of it in eval mode."""
        named = {**dict(self.branches.named_parameters()), **dict(self.branches.named_buffers())}
        return folded_site(self.key, self.spec, self.tensors(), named)

    def tensors(self) -> SiteTensors:
        """The numbers of the convolution and the norm as they are."""
        conv: Any = self.conv
        norm: Any = self.norm
        return SiteTensors(
            conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var, conv.bias
        )


class AfterSite(nn.Module):
    """What is left at a norm's place: nothing, or what its class does after normalising.

    A loop that freezes the norm by its name reaches the site's norms: `train`, `eval` and
    `requires_grad_` go on to them.

    Attributes:
        rest: The modules that its class calls then, an activation for instance.
    """

    def __init__(
        self, site: BranchedSite, norm: nn.Module, rest: tuple[nn.Module, ...] = ()
    ) -> None:
        """Keep the norm's class and settings for `restored`."""
        super().__init__()
        # Out of reach of whatever walks over modules: its numbers are the site's.
        self._norm = (norm,)
        self._site = (site,)
        self.rest = nn.Sequential(*rest)

    def train(self, mode: bool = True) -> Self:
        """The mode of all norms of the site: the student's own and those of its branches."""
        for module in self._site[0].modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode)
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether the gains and biases of the site's norms are trained, and the rest."""
        for module in self._site[0].modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        """As the site gives it, and after the rest."""
        out: Tensor = self.rest(x)
        return out

    @torch.no_grad()
    def restored(self, trained: Any, values: SiteTensors) -> nn.Module:
        """The norm of the student's own class.

        Args:
            trained: The norm that was trained: its flags, its counter.
            values: The numbers that it gets.
        """
        norm: Any = self._norm[0]
        named = {"weight": values.gamma, "bias": values.beta}
        for name, value in named.items():
            flag = getattr(trained, name).requires_grad
            norm._parameters[name] = nn.Parameter(value, requires_grad=flag)
        norm._buffers["running_mean"], norm._buffers["running_var"] = values.mean, values.var
        if trained.num_batches_tracked is not None:
            norm._buffers["num_batches_tracked"] = trained.num_batches_tracked
        norm.training = trained.training
        return norm  # type: ignore[no-any-return]
