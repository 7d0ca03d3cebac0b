"""From configuration nodes to objects, with errors that name the node and not the machinery."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wsss.errors import ConfigError, UserError


def build(config: DictConfig, node: str, **arguments: Any) -> Any:
    """Construct the object that the node at the dotted path ``node`` describes by ``_target_``.

    Args:
        config: the whole configuration, so that the node's interpolations resolve.
        node: for example ``cam`` or ``recipe.classifier.optimizer``.
        arguments: set or override constructor arguments.

    Raises:
        ConfigError: the node cannot be built; a ``UserError`` of the constructor itself passes through.
    """
    try:
        built = instantiate(OmegaConf.select(config, node, throw_on_missing=True), _convert_="all", **arguments)
        for item in built.values() if isinstance(built, Mapping) else (built,):
            if isinstance(item, partial):  # called much later, and a key it does not know is to be told now
                inspect.signature(item.func).bind_partial(*item.args, **item.keywords)
        return built
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__
        raise _cannot_be_built(node, error.__cause__ or error) from error
    except TypeError as error:
        raise _cannot_be_built(node, error) from error
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"the configuration node {node!r} is incomplete: {str(error).splitlines()[0]}. Set it with KEY=VALUE"
        ) from error


def _cannot_be_built(node: str, error: BaseException) -> ConfigError:
    return ConfigError(
        f"the configuration node {node!r} cannot be built: {str(error).splitlines()[0]}. Compare it with conf/"
    )
