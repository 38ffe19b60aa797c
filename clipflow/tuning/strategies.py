"""Which parameters learn, and how fast each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clipflow.errors import InvalidParameter
from clipflow.tuning.config import TuneConfig
from clipflow.tuning.towers import TwoTowers

_PROJECTIONS = ('visual_projection.', 'text_projection.', 'vision_model.head.', 'text_model.head.')
_FEWEST_CHANNELS = 8
"""Squeeze-excite may have fewer, and LoRA of a matrix of one row is the matrix itself."""
_TEMPERATURE = ('logit_scale', 'logit_bias')


@dataclass(frozen=True)
class Learning:
    """What learns.

    Attributes:
        towers: the parameters of the towers that learn, by their names.
        shared: those of the temperature that learn.
        groups: of both, as AdamW takes them, each with its highest learning rate `rate`.
    """

    towers: dict[str, nn.Parameter]
    shared: dict[str, nn.Parameter]
    groups: list[dict[str, Any]]

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """All that learns."""
        return self.towers | self.shared


def choose(model: TwoTowers, config: TuneConfig) -> Learning:
    """Make the parameters of the strategy learn, and no other.

    Raises:
        InvalidParameter: the model has no such parts.
    """
    named: dict[str, nn.Parameter] = {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for side in ('image', 'text'):
        if config.towers not in ('both', side):
            continue
        tower: Any = getattr(model, side)
        prefix, count = blocks_of(tower)
        if config.strategy == 'lora':
            _insert_lora(tower, prefix, config)
        for name, parameter in tower.named_parameters():
            short = name.removeprefix('_model.')
            depth = _depth(short, prefix, count)
            if short not in _TEMPERATURE and _learns(short, depth, count, config):
                parameter.requires_grad_(True)
                named[f'{side}.{short}'] = parameter
                rate = config.rate * config.layer_decay ** (count + 1 - depth)
                decay = config.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
    shared: dict[str, nn.Parameter] = {}
    if config.learn_scale and config.loss != 'triplet':
        shared = {'scale': model.log_scale} | ({'bias': model.bias} if config.loss == 'siglip' else {})
        groups.setdefault((config.rate, 0.0), []).extend(shared.values())
    for parameter in shared.values():
        parameter.requires_grad_(True)
    made = [{'params': several, 'rate': rate, 'weight_decay': decay} for (rate, decay), several in groups.items()]
    return Learning(named, shared, made)


def check(model: TwoTowers, config: TuneConfig) -> None:
    """Whether the strategy fits the model.

    Raises:
        InvalidParameter: it has fewer blocks than shall learn, or no projection.
    """
    for side in ('image', 'text'):
        if config.towers not in ('both', side):
            continue
        tower: Any = getattr(model, side)
        count = blocks_of(tower)[1]
        if config.strategy == 'last-n-layers' and config.layers > count:
            raise InvalidParameter(f'the {side} tower has {count} blocks, so layers={config.layers} is too many')
        names = [name.removeprefix('_model.') for name, _ in tower.named_parameters()]
        if config.strategy == 'projection' and not any(name.startswith(_PROJECTIONS) for name in names):
            raise InvalidParameter(f'the {side} tower has no projection that could learn; take another strategy')


def blocks_of(tower: nn.Module) -> tuple[str, int]:
    """Name and length of the list of a tower's blocks, without the leading `_model.`."""
    found = [(name, part) for name, part in tower.named_modules() if isinstance(part, nn.ModuleList)]
    if not found:
        raise InvalidParameter('the model has no list of blocks that is known here')
    name, part = max(found, key=lambda item: len(item[1]))
    return name.removeprefix('_model.') + '.', len(part)


def checkpoint_blocks(tower: nn.Module) -> None:
    """Keep of each block its input alone, and compute it again when its gradient is wanted (Chen et al. 2016)."""
    from torch.utils.checkpoint import checkpoint

    def again(forward: Any) -> Any:
        return lambda *values, **named: checkpoint(forward, *values, use_reentrant=False, **named)

    for block in tower.get_submodule('_model.' + blocks_of(tower)[0][:-1]).children():
        block.forward = again(block.forward)


def merge_lora(model: nn.Module) -> None:
    """Add what LoRA has learned to the weights, and take its matrices out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, part) for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, part in adapted:
        part.merge()
        model.set_submodule(name, part.get_base_layer())


def _depth(name: str, prefix: str, count: int) -> int:
    """0 for the embeddings, then the blocks from 1, and last what comes behind them."""
    if name.startswith(prefix):
        return int(name[len(prefix) :].partition('.')[0]) + 1
    return 0 if 'embeddings.' in name or 'pre_layrnorm.' in name else count + 1


def _learns(name: str, depth: int, count: int, config: TuneConfig) -> bool:
    match config.strategy:
        case 'full':
            return True
        case 'last-n-layers':
            return depth > count - config.layers
        case 'projection':
            return name.startswith(_PROJECTIONS)
        case 'lora':
            return '.lora_' in name


def _insert_lora(tower: nn.Module, prefix: str, config: TuneConfig) -> None:
    """Into every linear layer of the blocks and the projection; where blocks have none, into convolutions of 1 x 1.

    Hu et al. 2021, arXiv:2106.09685. The matrices start so that nothing changes.
    """
    import warnings

    from peft import LoraConfig, inject_adapter_in_model

    linear = list(_linear(tower, prefix))
    wanted = linear if any(name.startswith(prefix) for name in linear) else [*linear, *_pointwise(tower, prefix)]
    options = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=['_model.' + name for name in wanted]
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter('ignore')
        torch.manual_seed(config.seed)
        inject_adapter_in_model(options, tower)


def _linear(tower: nn.Module, prefix: str) -> Iterator[str]:
    for name, part in tower.named_modules():
        short = name.removeprefix('_model.')
        if type(part) is nn.Linear and (short.startswith(prefix) or (short + '.').startswith(_PROJECTIONS[:2])):
            yield short


def _pointwise(tower: nn.Module, prefix: str) -> Iterator[str]:
    for name, part in tower.named_modules():
        short = name.removeprefix('_model.')
        if short.startswith(prefix) and isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1):
            fewest = min(part.in_channels, part.out_channels)
            if part.groups == 1 and fewest >= _FEWEST_CHANNELS:
                yield short
