"""Trains a model to foretell the next token."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from glassformer import _core
from glassformer.transformer_lens.utilities.devices import get_device
from glassformer.transformer_lens.utilities.library_utils import needed, with_progress


@dataclasses.dataclass
class HookedTransformerTrainConfig:
    """How to train.

    `optimizer_name` is "Adam" (with a `weight_decay` it is AdamW), "AdamW" or "SGD"; `momentum` is SGD's.
    `max_grad_norm` shortens longer gradients. The learning rate `lr` is reached after `warmup_steps`. Every
    `print_every` steps the loss is printed; every `save_every` steps the weights are written to
    `save_dir`/model_<step>.pt. With `wandb` every loss is logged to the project `wandb_project_name`. Each epoch ends
    behind step `max_steps`, counted from 0. `device`: None takes the fastest.
    """

    num_epochs: int
    batch_size: int
    lr: float = 1e-3
    seed: int = 0
    momentum: float = 0.0
    max_grad_norm: float | None = None
    weight_decay: float | None = None
    optimizer_name: str = "Adam"
    device: str | torch.device | None = None
    warmup_steps: int = 0
    save_every: int | None = None
    save_dir: str | None = None
    wandb: bool = False
    wandb_project_name: str | None = None
    print_every: int | None = 50
    max_steps: int | None = None


def train(model: Any, config: HookedTransformerTrainConfig, dataset: Dataset) -> Any:
    """Train `model` on a data set whose entries hold "tokens", `pos`; returns the model, which is changed.

    Draws with torch's own generator from the seed `config.seed`. Another name of an optimizer is a ValueError;
    ImportError where `config.wandb` asks for a library that is missing.
    """
    config = dataclasses.replace(config)
    torch.manual_seed(config.seed)
    model.train()
    wandb = needed("wandb", "HookedTransformerTrainConfig(wandb=True)") if config.wandb else None
    if wandb is not None:
        config.wandb_project_name = config.wandb_project_name or "easy-transformer"
        wandb.init(project=config.wandb_project_name, config=vars(config))
    config.device = config.device or get_device()
    optimizer = _optimizer(model, config)
    warmup = None
    if config.warmup_steps > 0:
        steps = config.warmup_steps
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / steps))
    batches = DataLoader(dataset, batch_size=config.batch_size, shuffle=True)
    model.to(config.device)
    for epoch in with_progress(range(1, config.num_epochs + 1)):
        samples = 0
        for step, batch in with_progress(enumerate(batches)):
            tokens = batch["tokens"].to(config.device)
            loss = _step(model, tokens, config, optimizer, warmup)
            samples += tokens.shape[0]
            if wandb is not None:
                wandb.log({"train_loss": loss, "samples": samples, "epoch": epoch})
            if config.print_every is not None and step % config.print_every == 0:
                print(f"Epoch {epoch} Samples {samples} Step {step} Loss {loss}")
            if config.save_every is not None and config.save_dir is not None and step % config.save_every == 0:
                torch.save(model.state_dict(), f"{config.save_dir}/model_{step}.pt")
            if config.max_steps is not None and step >= config.max_steps:
                break
    return model


def _optimizer(model: Any, config: HookedTransformerTrainConfig) -> torch.optim.Optimizer:
    decay = config.weight_decay
    if config.optimizer_name == "SGD":
        return torch.optim.SGD(model.parameters(), lr=config.lr, weight_decay=decay or 0.0, momentum=config.momentum)
    if config.optimizer_name not in ("Adam", "AdamW"):
        raise _core.InputError(f"optimizer_name is {config.optimizer_name!r}; expected Adam, AdamW or SGD")
    if decay is None:
        return torch.optim.Adam(model.parameters(), lr=config.lr)
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=decay)


def _step(
    model: Any,
    tokens: torch.Tensor,
    config: HookedTransformerTrainConfig,
    optimizer: torch.optim.Optimizer,
    warmup: Any,
) -> float:
    """One step down the gradient; the loss before it."""
    loss = model(tokens, return_type="loss")
    loss.backward()
    if config.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()
    if warmup is not None:
        warmup.step()
    optimizer.zero_grad()
    return loss.item()
