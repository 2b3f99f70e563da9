"What the notebooks of models/ and methods/ cannot hold: leakage, resuming, isolation of records and labels, for every method."
import copy, json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from peace_nb.labels.space import LABELS, PAPER9
from peace_nb.methods.registry import Method, build_method
from peace_nb.settings import PeaceError

K = len(LABELS)


# the other families have tests of their own, with the batches and texts that they read
NAMES = ("PEACE", "ECG-only", "Random")

def random_embeddings(seed=0):
    return F.normalize(torch.randn(K, 3, 32, generator=torch.Generator().manual_seed(seed)), dim=-1)


def random_batch(n=12, seconds=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, K, generator=g) < 0.1).float()
    labels[0] = 0  # a record without any finding
    labels[:, 5] = torch.nan  # a label that this cohort cannot express
    mask = torch.ones(n, 12)
    mask[: n // 2, [7, 9, 11]] = 0  # half of the records have nine leads
    return dict(signals=torch.randn(n, 12, 100 * seconds, generator=g), mask=mask, labels=labels,
                age_years=torch.full((n,), torch.nan), index=torch.arange(n))


def make(name, seed=0, **cfg):
    return build_method(name, LABELS, "tiny", seed=seed, embeddings=random_embeddings(), **cfg)


def train(method, steps, optimiser, first=0, total=6):
    method.train()
    for step in range(first, first + steps):
        terms = method(random_batch(seed=step), step / total)
        optimiser.zero_grad()
        terms["total"].backward()
        optimiser.step()
    return method


def trained(name, steps=3, **cfg):
    torch.manual_seed(0)
    method = make(name, **cfg)
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-2)
    return train(method, steps, optimiser).eval()


def predict(method, batch):
    with torch.no_grad():
        return method.predict(batch["signals"], batch["mask"])


# Label leakage

def test_scores_are_the_same_when_the_text_branch_is_deleted():
    method, batch = trained("PEACE"), random_batch(seed=99)
    whole = predict(method, batch)
    del method.knowledge
    method.knowledge = None
    assert torch.equal(predict(method, batch), whole)


def test_prediction_never_composes_axis_tokens():
    method, batch = trained("PEACE"), random_batch(seed=99)

    def forbidden(*args):
        raise AssertionError("the knowledge branch was called")

    for module in method.knowledge.modules():
        module.register_forward_pre_hook(forbidden)
    predict(method, batch)
    with pytest.raises(AssertionError, match="knowledge branch"):
        method.loss(batch, 0.5)


def test_label_queries_read_only_ecg_tokens_at_prediction():
    method, batch = trained("PEACE"), random_batch(seed=99)
    read = []
    method.lqn.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    predict(method, batch)
    with torch.no_grad():
        ecg_tokens = method.enter(method.encoder(batch["signals"], batch["mask"]))
    assert len(read) == 1 and torch.equal(read[0], ecg_tokens)


@pytest.mark.parametrize("name", NAMES)
def test_looking_at_a_loss_changes_neither_scores_nor_state(name):
    method, batch = trained(name), random_batch(seed=99)
    before, state = predict(method, batch), copy.deepcopy(method.state_dict())
    method.loss(batch, 0.9)
    method.loss(dict(batch, labels=1 - batch["labels"]), 0.9)
    assert torch.equal(predict(method, batch), before)
    assert all(torch.equal(v, state[k]) for k, v in method.state_dict().items())


def test_ecg_loss_does_not_depend_on_the_text():
    batch = random_batch()
    a, b = make("PEACE", queries="learned").eval(), make("PEACE", queries="learned").eval()
    b.knowledge.compose.embeddings = random_embeddings(seed=7)
    assert torch.equal(a.loss(batch, 1.0)["ecg"], b.loss(batch, 1.0)["ecg"])
    assert not torch.equal(a.loss(batch, 1.0)["txt"], b.loss(batch, 1.0)["txt"])


# Records and labels do not disturb each other

@pytest.mark.parametrize("name", NAMES)
def test_a_score_does_not_depend_on_the_other_records_of_its_batch(name):
    method, batch = trained(name), random_batch(seed=99)
    together = predict(method, batch)
    with torch.no_grad():
        alone = torch.cat([method.predict(x[None], m[None]) for x, m in zip(batch["signals"], batch["mask"])])
    assert torch.allclose(alone, together, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_an_absent_lead_is_never_read(name):
    method, batch = trained(name), random_batch(seed=99)
    garbage = batch["signals"].clone()
    garbage[: len(garbage) // 2, [7, 9, 11]] = 1e4
    assert torch.equal(predict(method, dict(batch, signals=garbage)), predict(method, batch))


@pytest.mark.parametrize("cfg", [{}, dict(weighting="count"), dict(axes="fused"), dict(caf=False), dict(depth=2)])
def test_a_label_that_is_never_known_gets_no_gradient(cfg):
    method = make("PEACE", **cfg).train()
    method(random_batch(), 0.5)
    method(random_batch(seed=1), 0.5)["total"].backward()  # by now the gate may be open
    for parameter in (method.lqn.queries, method.lqn.weight, method.lqn.bias):
        assert parameter.grad[5].abs().max() == 0 and parameter.grad[6].abs().max() > 0


def test_a_record_without_findings_takes_part_in_classification_only():
    method, batch = make("PEACE", caf=False, queries="learned").eval(), random_batch()
    rest = {k: v[1:] for k, v in batch.items()}
    with_it, without = method.loss(batch, 1.0), method.loss(rest, 1.0)
    assert torch.allclose(with_it["lsbc"], without["lsbc"], atol=1e-5)
    assert torch.allclose(with_it["txt"], without["txt"], atol=1e-5)
    assert not torch.allclose(with_it["ecg"], without["ecg"], atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_in_which_nothing_is_positive_trains(name):
    method, batch = make(name).train(), random_batch()
    terms = method(dict(batch, labels=torch.zeros(len(batch["labels"]), K)), 0.5)
    terms["total"].backward()
    assert all(v.isfinite().all() for v in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


# Checkpoints

@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_training_continues_bitwise(name, tmp_path):
    def start():
        torch.manual_seed(0)
        method = make(name)
        return method, torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-2)

    straight, optimiser = start()
    train(straight, 6, optimiser)
    first, optimiser = start()
    train(first, 3, optimiser)
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    second = build_method(**json.loads(json.dumps(first.config)))
    second.load_state_dict(load_file(tmp_path / "model.safetensors"))
    resumed = torch.optim.AdamW([p for p in second.parameters() if p.requires_grad], 1e-2)
    resumed.load_state_dict(optimiser.state_dict())
    train(second, 3, resumed, first=3)
    assert all(torch.equal(v, straight.state_dict()[k]) for k, v in second.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_fewer_labels_keep_their_scores_and_can_be_saved(name, tmp_path):
    method, batch = trained(name), random_batch(seed=99)
    few = method.restrict(PAPER9)
    at = [LABELS.index(label) for label in PAPER9]
    assert isinstance(few, Method) and few.labels == PAPER9 and method.labels == LABELS
    assert torch.allclose(predict(few, batch), predict(method, batch)[:, at], atol=1e-5)
    few.train()(dict(batch, labels=batch["labels"][:, at]), 0.5)["total"].backward()
    few.eval()
    save_file(few.state_dict(), tmp_path / "few.safetensors")
    again = build_method(**few.config)
    again.load_state_dict(load_file(tmp_path / "few.safetensors"))
    assert torch.equal(predict(again.eval(), batch), predict(few, batch))


def test_a_checkpoint_of_other_labels_does_not_load():
    method = make("PEACE")
    with pytest.raises(RuntimeError):
        method.restrict(PAPER9).load_state_dict(method.state_dict())
    with pytest.raises(PeaceError, match="NOTHERE"):
        method.restrict(("NORM", "NOTHERE"))


# Mixed precision, lengths

def test_mixed_precision_gives_the_same_losses_nearly():
    method, batch = make("PEACE", caf=False).eval(), random_batch(n=32)
    exact = method.loss(batch, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = method.loss(batch, 1.0)
    assert mixed["lsbc"].dtype == torch.float32
    for term in ("ecg", "txt", "lsbc"):
        assert abs(mixed[term] - exact[term]) < 0.03 * exact[term], term


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("samples", [500, 777, 5000])
def test_any_length_is_read(name, samples):
    method = make(name).eval()
    with torch.no_grad():
        scores = method.predict(torch.randn(2, 12, samples))
    assert scores.shape == (2, K) and scores.isfinite().all()
