"""What a recipe makes for a model: its optimizers, its dropout and stochastic depth. Loads torch."""

from __future__ import annotations

from typing import Any

import torch

from vitbench.training.muon import SpectralMuon
from vitbench.training.recipes import Recipe


def make_optimizers(model: torch.nn.Module, recipe: Recipe, num_classes: int) -> list[torch.optim.Optimizer]:
    """The recipe's optimizers; each trained parameter belongs to one of them.

    ``muon``: Muon (Jordan et al., 2024; torch.optim.Muon) for hidden_matrices, AdamW for the rest. Muon's steps have
    the size of AdamW's (Liu et al., 2025, arXiv:2502.16982, section 2.2); with ``muon_factor``, SpectralMuon takes
    them, with this factor times the learning rate.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lr, weight_decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return [torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)]
    if recipe.optimizer == "adam":
        return [torch.optim.Adam(trained, lr=lr, weight_decay=weight_decay)]
    if recipe.optimizer == "sgd":
        return [torch.optim.SGD(trained, lr=lr, weight_decay=weight_decay, momentum=recipe.momentum)]
    matrices = [matrix for matrix in hidden_matrices(model, num_classes) if matrix.requires_grad]
    taken = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in trained if id(parameter) not in taken]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        factor = recipe.muon_factor
        if factor is None:
            muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        else:  # torch decays by the learning rate times the decay
            muon = SpectralMuon(matrices, lr=factor * lr, weight_decay=weight_decay / factor)
        optimizers.append(muon)
    if rest:
        optimizers.append(torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay))
    return optimizers


def hidden_matrices(model: torch.nn.Module, num_classes: int) -> list[torch.nn.Parameter]:
    """The weights of linear layers and of attention's projections between the embedding and the classifier.

    Left out: layers whose output is the classes, and layers with one or two outputs (scores), whose orthogonalisation
    means nothing; convolutions and the patch embedding. Shared weights come once.
    """
    found: dict[int, torch.nn.Parameter] = {}
    for path, module in model.named_modules():
        if "embed" in path:
            continue
        weight: Any = None
        if isinstance(module, torch.nn.Linear):
            weight = module.weight
        elif isinstance(module, torch.nn.MultiheadAttention):
            weight = module.in_proj_weight
        if weight is not None and weight.shape[0] not in (1, 2, num_classes):
            found[id(weight)] = weight
    return list(found.values())


def regularise(model: torch.nn.Module, recipe: Recipe) -> tuple[str, ...]:
    """Set the model's dropout and stochastic depth to the recipe's, in place. Returns what the model has no layers for
    (``stochastic depth``).

    ``dropout`` goes to every dropout layer and to the weights of nn.MultiheadAttention. ``stochastic_depth`` is the
    rate of the last block; that of the first is 0, and they rise linearly between (Huang et al., 2016, section 3). The
    branches of one block have one rate.
    """
    lacking = []
    if recipe.dropout is not None:
        layers = [one for one in model.modules() if isinstance(one, torch.nn.Dropout | torch.nn.MultiheadAttention)]
        if not layers and recipe.dropout > 0:
            lacking.append("dropout")
        for layer in layers:
            if isinstance(layer, torch.nn.Dropout):
                layer.p = recipe.dropout
            else:
                layer.dropout = recipe.dropout
    if recipe.stochastic_depth is not None:
        blocks = _blocks_with_stochastic_depth(model)
        if not blocks and recipe.stochastic_depth > 0:
            lacking.append("stochastic depth")
        for index, branches in enumerate(blocks):
            for branch, name in branches:
                setattr(branch, name, recipe.stochastic_depth * index / max(len(blocks) - 1, 1))
    return tuple(lacking)


def _blocks_with_stochastic_depth(model: torch.nn.Module) -> list[list[tuple[torch.nn.Module, str]]]:
    """The layers of each block, and the attribute that is their rate. A block is a module with such layers as children.

    Blocks without any count if others follow: timm leaves the layer out where its rate would be 0.
    """
    # ours have a rate, torchvision's a p, timm's a drop_prob
    names = {"StochasticDepth": ("rate", "p"), "DropPath": ("drop_prob",)}
    blocks: list[list[tuple[torch.nn.Module, str]]] = []
    for parent in model.modules():
        found = [
            (child, name)
            for child in parent.children()
            for name in names.get(type(child).__name__, ())
            if isinstance(getattr(child, name, None), float)
        ]
        if isinstance(parent, torch.nn.ModuleList):  # a list of layers is not a block
            blocks += [[one] for one in found]
        elif found or any(
            isinstance(child, torch.nn.Identity) and name.startswith("drop_path")
            for name, child in parent.named_children()
        ):
            blocks.append(found)
    while blocks and not blocks[-1]:
        blocks.pop()
    return blocks
