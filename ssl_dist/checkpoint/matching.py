"""Match the tensors of a file with those of a network: each has its place, or is named."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ssl_dist.checkpoint.public_layouts import Place, find
from ssl_dist.checkpoint.public_names import by_canonical_name, canonical
from ssl_dist.errors import ConfigError
from ssl_dist.settings import BackboneConfig

if TYPE_CHECKING:
    from ssl_dist.backbones import Backbone
    from ssl_dist.checkpoint.torch_files import Tables

_BODY = "body."  # begins the names of the network's tensors within the backbone
_COUNTER = "num_batches_tracked"  # of BatchNorm, which no computation here uses and some files lack
_PATCHES, _POSITIONS = "patch_embed.proj.weight", "pos_embed"
_SHOWN = 3  # names in a message

log = logging.getLogger(__name__)


class Matching(NamedTuple):
    """The tensors of a file and of a network that are to be matched.

    Attributes:
        origin: names the file in messages.
        place: where the backbone is in ``tables``.
        network: with random weights.
        settings: that it was built by.
        size_px: pixels a side of the largest views; None: not known.
        num_heads: attention heads of the file's network, where something beside the file tells them.
    """

    origin: str
    tables: Tables
    place: Place
    network: Backbone
    settings: BackboneConfig
    size_px: int | None
    num_heads: int | None = None

    @classmethod
    def of(
        cls, origin: str, tables: Tables, network: Backbone, settings: BackboneConfig, size_px: int | None
    ) -> Matching:
        """Find the backbone in a file.

        Raises:
            ConfigError: none of the network's tensors is there.
        """
        place = find(tables, {canonical(name.removeprefix(_BODY)) for name in network.state_dict()})
        if place is None:
            names = [name for table in tables.values() for name in table]
            raise ConfigError(
                f"{origin} has no tensor of backbone {settings.name}: it has {_listed(names) or 'none at all'}: give"
                " weights of the same backbone"
            )
        return cls(origin, tables, place, network, settings, size_px)

    @property
    def table(self) -> Mapping[str, Tensor]:
        """The dictionary that has the backbone."""
        return self.tables[self.place.table]

    def tensors(self) -> dict[str, Tensor]:
        """Return all of the network's tensors, by its names, and name in the log what was left out.

        Raises:
            ConfigError: a tensor is missing, has another shape or no finite numbers, or has no place in the network.
        """
        prefix = self.place.layout.prefix
        inside = [name.removeprefix(prefix) for name in self.table if name.startswith(prefix)]
        sources = {name: [prefix + part for part in parts] for name, parts in by_canonical_name(inside).items()}
        wanted = {name: canonical(name.removeprefix(_BODY)) for name in self.network.state_dict()}
        used = {source for name in wanted.values() for source in sources.get(name, ())}
        left_out, unexpected = self._left_out(used)
        found, random = dict[str, Tensor](), list[str]()
        for name, tensor in self.network.state_dict().items():
            if parts := sources.get(wanted[name]):
                fitted = self._fitted(wanted[name], tensor, parts)
                if isinstance(fitted, str):
                    raise self._misfit(name, tensor, fitted, unexpected)
                found[name] = fitted
            elif name.endswith(_COUNTER):
                found[name] = torch.zeros_like(tensor)
            elif self._may_be_missing(name.removeprefix(_BODY)):
                found[name] = tensor
                random.append(name)
            else:
                raise self._misfit(name, tensor, "none", unexpected)
        if unexpected:
            raise ConfigError(
                f"{self.origin} has {_listed(unexpected)}, for which backbone {self.settings.name} has no place: to"
                " leave tensors out, name them, or how their names begin, in backbone.allow_missing"
            )
        self._expect_heads()
        self._tell(left_out, random)
        return found

    def _left_out(self, used: Collection[str]) -> tuple[dict[str, int], list[str]]:
        """Return how many tensors begin with what is known not to be of the backbone; and those that are not known."""
        known, unexpected = dict[str, int](), list[str]()
        classifier = f"{self.place.layout.prefix}{self.network.classifier}."
        for name in (name for name in self.table if name not in used):
            begin = classifier if name.startswith(classifier) else self.place.layout.leaves_out(name)
            if begin is None and self._may_be_missing(name):
                begin = name
            if begin is None:
                unexpected.append(name)
            else:
                known[begin or name] = known.get(begin or name, 0) + 1
        return known, unexpected

    def _may_be_missing(self, name: str) -> bool:
        return name.startswith(self.settings.allow_missing)

    def _fitted(self, known_as: str, tensor: Tensor, parts: list[str]) -> Tensor | str:
        """Return the file's tensor in the network's type, or words for what does not fit.

        Parts are joined; position embeddings are interpolated if it is so set.

        Args:
            known_as: the canonical name.
            tensor: the network's.
            parts: names in the file.
        """
        given = [self.table[part] for part in parts]
        shapes = {tuple(one.shape) for one in given}
        whole = torch.Size([len(tensor) // len(parts), *tensor.shape[1:]]) if tensor.ndim else tensor.shape
        if len(parts) not in (1, 3) or shapes != {tuple(whole)}:
            if known_as == _POSITIONS and len(given) == 1:
                return self._interpolated(tensor, given[0])
            described = " and ".join(f"{list(one.shape)} ({part})" for one, part in zip(given, parts, strict=True))
            return f"one of {described}"
        if any(one.is_floating_point() != tensor.is_floating_point() for one in given):
            return f"one of {given[0].dtype} where it needs {tensor.dtype}"
        joined = (given[0] if len(given) == 1 else torch.cat(given)).to(tensor.dtype)
        if not bool(joined.isfinite().all()):
            raise ConfigError(
                f"{self.origin}: {' and '.join(parts)} has numbers that are not finite: take another file"
            )
        return joined

    def _misfit(self, name: str, tensor: Tensor, given: str, unexpected: Collection[str]) -> ConfigError:
        network = f"{self.settings.name} (stem {self.settings.stem})"
        given += f" (it has {_listed(unexpected)})" if unexpected else ""
        return ConfigError(
            f"{self.origin}: backbone {network} has a tensor {name} of {list(tensor.shape)}, the file {given}: give"
            f" weights of the same backbone (the file was read as {self.place.layout.source})"
        )

    def _interpolated(self, tensor: Tensor, given: Tensor) -> Tensor | str:
        """Return the position embeddings of a ViT for this size of images, or words for what does not fit.

        Those of tokens that are no patches' stay.

        Source: timm's ``resample_abs_pos_embed``.
        """
        kernel = next(
            (one for key, one in self.network.state_dict().items() if canonical(key.removeprefix(_BODY)) == _PATCHES),
            None,
        )
        same = given.ndim == 3 and given.shape[::2] == tensor.shape[::2]  # [1, tokens, D]
        if kernel is None or self.size_px is None or not same:
            return f"one of {list(given.shape)}"
        patch_px = kernel.shape[-1]
        side = self.size_px // patch_px
        others = tensor.shape[1] - side**2
        old = math.isqrt(max(0, given.shape[1] - others))
        if others < 0 or old**2 != given.shape[1] - others or not old:
            return f"one of {list(given.shape)}"
        if self.settings.position_embeddings != "interpolate":
            raise ConfigError(
                f"{self.origin}: its position embeddings are of {old} x {old} patches, as of images of {old * patch_px}"
                f" px, and views of {self.size_px} px have {side} x {side}: set augment.size_px to {old * patch_px}, or"
                " backbone.position_embeddings to interpolate"
            )
        tokens, places = given[:, :others].float(), given[:, others:].float()
        grid = places.reshape(1, old, old, -1).permute(0, 3, 1, 2)
        resized = interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
        return torch.cat([tokens, resized.permute(0, 2, 3, 1).reshape(1, side**2, -1)], dim=1).to(tensor.dtype)

    def _expect_heads(self) -> None:
        """Refuse a ViT whose attention has another number of heads than the file's, which no shape shows.

        Raises:
            ConfigError: it is so.
        """
        wanted = self.place.layout.num_heads.get(self.network.dim, self.num_heads)
        found = next((module.num_heads for module in self.network.modules() if hasattr(module, "num_heads")), None)
        if None not in (wanted, found) and wanted != found:
            raise ConfigError(
                f"{self.origin}: its network ({self.place.layout.source}) has {wanted} attention heads, and backbone"
                f" {self.settings.name} has {found}: set backbone.options.num_heads={wanted}"
            )

    def _tell(self, left_out: Mapping[str, int], random: Collection[str]) -> None:
        parts = [f"{begin} ({count} tensors)" if count > 1 else begin for begin, count in left_out.items()]
        parts += [f"all under {key or 'the outermost keys'}" for key in self.tables if key != self.place.table]
        told = [f"not used: {', '.join(parts)}"] if parts else []
        told += [f"random, because the file has none: {', '.join(random)}"] if random else []
        log.info("%s, read as %s: %s", self.origin, self.place.layout.source, "; ".join(told) or "all tensors are used")


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
