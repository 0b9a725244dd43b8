"""Pruning inside the trainers of Lightning and transformers: the real ones, their checkpoints and what they resume."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import edgeprune
from edgeprune.errors import InputError
from edgeprune.graph.apply import evaluated
from edgeprune.integrations.inplace import InPlace, positional
from edgeprune.integrations.lightning import PruningCallback as LightningCallback
from edgeprune.integrations.transformers import PruningCallback as TransformersCallback

warnings.filterwarnings("ignore", category=FutureWarning)

import lightning.pytorch as pl  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|Checkpoint directory|dirpath has changed):"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == own and torch.equal(a, b) for (name, a), (own, b) in pairs)


# -- Lightning --


class Lit(pl.LightningModule):
    """A network with batch norm, its optimizer with momenta and a schedule."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
        )
        self.example_input_array = torch.ones(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, index: int) -> None:
        self.log("test_loss", self.training_step(batch, index))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


def table() -> DataLoader[Any]:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 8)


def lightning_trainer(folder: Path, callback: LightningCallback, epochs: int = 4) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")],
    )


def lightning_callback(**choices: Any) -> LightningCallback:
    return LightningCallback(**{"keep_macs": 0.4, "at_epochs": (1, 3), "align": 2, **choices})


def test_lightning_trains_ever_smaller_networks_and_resumes_where_it_was(tmp_path: Path) -> None:
    whole, callback = Lit(), lightning_callback(criterion="taylor")
    trainer = lightning_trainer(tmp_path, callback)
    trainer.fit(whole, table())
    pruner = callback.pruner
    assert pruner.step == 2 and whole.net[0].out_features < 32
    with evaluated(whole):
        assert torch.allclose(whole(torch.ones(3, 6)), pruner.program.module()(torch.ones(3, 6)), atol=1e-6)
    optimizer = trainer.optimizers[0]
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in whole.parameters()}
    assert "on_load_checkpoint" not in whole.__dict__
    resumed, again = Lit(seed=5), lightning_callback(criterion="taylor")
    lightning_trainer(tmp_path, again).fit(resumed, table(), ckpt_path=str(tmp_path / "epoch=2.ckpt"))  # between steps
    assert same_weights(whole, resumed)
    assert again.pruner.plan == pruner.plan
    tested, fresh = Lit(seed=6), lightning_callback(criterion="taylor")
    trainer = lightning_trainer(tmp_path, fresh)
    trainer.test(tested, table(), ckpt_path=str(tmp_path / "epoch=3.ckpt"), verbose=False)
    assert same_weights(whole, tested)
    with pytest.raises(InputError, match="holds the network of step 1, and the module is that of step 2 already"):
        trainer.test(tested, table(), ckpt_path=str(tmp_path / "epoch=1.ckpt"), verbose=False)


def test_a_part_is_pruned_after_optimizer_steps(tmp_path: Path) -> None:
    model = Lit()
    callback = lightning_callback(at_epochs=None, at_steps=(3, 5), module="net", example_inputs=torch.ones(2, 6))
    with pytest.raises(InputError, match="expected a training that has begun, got none"):
        _ = callback.pruner
    lightning_trainer(tmp_path, callback, epochs=2).fit(model, table())
    assert callback.pruner.step == 2
    plan = callback.pruner.plan
    assert plan is not None and set(plan.tensors) <= {name for name, _ in model.net.state_dict().items()}


def test_an_adafactor_begins_afresh_and_an_early_end_is_told(tmp_path: Path) -> None:
    class Factored(Lit):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adafactor(self.parameters())

    callback = lightning_callback(at_epochs=(1, 9))
    with pytest.warns(UserWarning) as told:
        lightning_trainer(tmp_path, callback, epochs=2).fit(Factored(), table())
    messages = " ".join(str(warning.message) for warning in told)
    assert "what the optimizer keeps of net.0.weight" in messages
    assert "the training ended after 1 of 2 steps: the budgets are not reached" in messages


def test_lightning_with_a_compiled_module_is_refused(tmp_path: Path) -> None:
    model = torch.compile(Lit(), backend="eager")
    with pytest.raises(InputError, match="expected a Lit that is not compiled, got a compiled one"):
        lightning_trainer(tmp_path, lightning_callback()).fit(model, table())
    inside = Lit()
    inside.net = torch.compile(inside.net, backend="eager")
    with pytest.raises(InputError, match="its part 'net' is"):
        lightning_trainer(tmp_path, lightning_callback()).fit(inside, table())


def test_a_part_that_was_replaced_is_refused(tmp_path: Path) -> None:
    class Replaced(Lit):
        def on_train_start(self) -> None:
            self.net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

    with pytest.raises(InputError, match="with_weights: expected a module that this program's"):
        lightning_trainer(tmp_path, lightning_callback()).fit(Replaced(), table())
    with pytest.raises(InputError, match="module: expected the name of a part of Lit, got 'neck'"):
        lightning_trainer(tmp_path, lightning_callback(module="neck")).fit(Lit(), table())


# -- transformers --


def bert(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, vocab_size=20,
        max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def tokens() -> list[dict[str, Any]]:
    ids = torch.randint(0, 20, (16, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(6, dtype=torch.long)
    return [{"input_ids": row, "attention_mask": mask, "labels": int(row[0] > 9)} for row in ids]


def transformers_trainer(folder: Path, model: nn.Module, callback: TransformersCallback, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        **{"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "seed": 1, **options},
        lr_scheduler_type="constant",
        save_strategy="epoch",
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    return Trainer(model=model, args=arguments, train_dataset=tokens(), callbacks=[callback])


def transformers_callback(**choices: Any) -> TransformersCallback:
    examples = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    return TransformersCallback(
        **{"example_inputs": examples, "keep_macs": 0.5, "at_epochs": (1,), "align": 2, **choices}
    )


def test_transformers_trains_its_own_class_and_resumes_where_it_was(tmp_path: Path) -> None:
    choices = {"criterion": "taylor", "at_epochs": None, "at_steps": (1, 3)}
    whole, callback = bert(), transformers_callback(**choices)
    trainer = transformers_trainer(tmp_path, whole, callback)
    trainer.train()
    assert callback.pruner.step == 2
    assert whole.bert.encoder.layer[0].intermediate.dense.out_features < 32
    batch = {name: torch.stack([row[name] for row in tokens()[:3]]) for name in ("input_ids", "attention_mask")}
    with evaluated(whole):
        expected = whole(**batch).logits
    got = callback.pruner.program.module()(batch["input_ids"], batch["attention_mask"])
    assert torch.allclose(expected, got["logits"], atol=1e-5)
    optimizer = trainer.optimizer
    assert optimizer is not None
    own = {id(p) for p in whole.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == own
    checkpoint = str(tmp_path / "checkpoint-2")  # between the steps, with gradients that were observed
    resumed, again = bert(seed=5), transformers_callback(**choices, resume_from_checkpoint=checkpoint)
    transformers_trainer(tmp_path, resumed, again).train(resume_from_checkpoint=checkpoint)
    assert same_weights(whole, resumed)
    assert again.pruner.plan == callback.pruner.plan
    with pytest.raises(InputError, match="those of another step, which the callback was not told of"):
        transformers_trainer(tmp_path, whole, callback).train(resume_from_checkpoint=checkpoint)
    (tmp_path / "checkpoint-2/edgeprune.pt").unlink()
    with pytest.raises(
        InputError, match=r"expected a checkpoint of a training with PruningCallback, got no edgeprune.pt"
    ):
        transformers_trainer(tmp_path, bert(), transformers_callback(resume_from_checkpoint=tmp_path / "checkpoint-2"))


def test_transformers_that_compiles_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a trainer that does not compile the model, got torch_compile=True"):
        transformers_trainer(tmp_path, bert(), transformers_callback(), torch_compile=True)
    with pytest.raises(InputError, match="expected a checkpoint to resume from, got none"):
        transformers_trainer(tmp_path, bert(), transformers_callback(resume_from_checkpoint=True))


# -- both --


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"at_epochs": None}, "expected at_epochs or at_steps, one of them, got none"),
        ({"at_steps": (3,)}, "expected at_epochs or at_steps, one of them, got both"),
        ({"at_epochs": (3, 2)}, "at_epochs: expected whole numbers from 0, ascending"),
        ({"at_epochs": ()}, "at_epochs: expected whole numbers from 0, ascending"),
        ({"at_epochs": 3}, "at_epochs: expected whole numbers from 0, ascending"),
        ({"steps": 5}, "steps: expected 2, as many as places to prune at, got 5"),
        ({"at_epochs": (0,), "criterion": "taylor"}, "criterion taylor: expected some training before the first step"),
        ({"out": "."}, "expected a new folder for out, got one that exists"),
    ],
)
def test_options_of_a_callback_that_are_wrong_are_refused(choices: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        lightning_callback(**choices)


def test_examples_by_name_go_where_the_forward_takes_them() -> None:
    class Named(nn.Module):
        def forward(self, a: Tensor, b: Tensor | None = None, c: Tensor | None = None) -> Tensor:
            return a if c is None else a + c

    one, three = torch.ones(2, 1), torch.ones(2, 3)
    assert positional(Named(), {"c": three, "a": one}) == (one, None, three)
    assert positional(Named(), (one,)) == (one,)
    with pytest.raises(InputError, match="expected names of arguments that Named.forward takes, got d"):
        positional(Named(), {"d": one})


def test_the_run_folder_is_written_when_the_training_ends(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    in_place = InPlace(torch.ones(2, 6), (0,), None, tmp_path / "run", {"keep_macs": 0.5, "align": 2})
    in_place.reach("epoch", 0, model, [torch.optim.SGD(model.parameters())])
    in_place.finish(model)
    slim = edgeprune.load_model(tmp_path / "run/slim.pt2").program.module()
    assert torch.allclose(model(torch.ones(2, 6)), slim(torch.ones(2, 6)), atol=1e-6)


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    for module in [known for known in sys.modules if known.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, f"edgeprune.integrations.{name}")
    with pytest.raises(ImportError, match=rf"pip install 'edgeprune\[{name}\]'"):
        importlib.import_module(f"edgeprune.integrations.{name}")
