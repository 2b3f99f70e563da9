"""Published encoders, ST-MEM and MELP: what a notebook cell cannot hold."""
import pytest
import torch

from peace_nb.labels.space import PAPER9
from peace_nb.methods.registry import METHODS, build_method, registered
from peace_nb.models.encoders import build_encoder

TINY = {
    "resnet18": dict(width=0.125), "xresnet1d101": dict(width=0.125), "st-mem-vit-b": dict(width=1 / 12, depth=1),
    "wav2vec2-cmsc": dict(width=1 / 12, depth=1)
}


def melp(**cfg):
    return build_method(
        "MELP", PAPER9,
        **{
            **dict(
                encoder="tiny", embeddings=torch.randn(9, 1, 16), vocabulary=30, length=12, width=16, looks=4, depth=1
            ),
            **cfg,
        },
    )


def a_batch(n=6, seed=0, T=300):
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(4, 30, (n, 12), generator=g)
    words[:, 0] = 2
    words[:, 9:] = 0
    words[:, 8] = 3
    return dict(
        signals=torch.randn(n, 12, T, generator=g), mask=torch.ones(n, 12),
        labels=(torch.rand(n, 9, generator=g) < 0.3).float(), age_years=torch.full((n,), 50.0), index=torch.arange(n),
        report=torch.randn(n, 16, generator=g), report_known=torch.ones(n, dtype=torch.bool),
        sentences=torch.randn(n, 3, 16, generator=g), sentence_mask=torch.ones(n, 3, dtype=torch.bool), tokens=words
    )


@pytest.mark.parametrize("name", list(TINY))
def test_absent_leads_are_not_heard(name):
    torch.manual_seed(0)
    encoder, x, mask = build_encoder(name, **TINY[name]).eval(), torch.randn(2, 12, 700), torch.ones(2, 12)
    mask[0, [7, 9, 11]] = 0
    other = torch.where(mask[..., None] > 0, x, 1e3 * torch.randn_like(x))
    with torch.no_grad(): assert torch.equal(encoder(x, mask), encoder(other, mask))


@pytest.mark.parametrize("name", list(TINY))
def test_tokens_do_not_depend_on_who_else_is_in_the_batch(name):
    torch.manual_seed(0)
    encoder, x = build_encoder(name, **TINY[name]).eval(), torch.randn(3, 12, 500)
    mask = torch.ones(3, 12)
    mask[1, 6:] = 0
    mask[2] = 0
    with torch.no_grad():
        assert torch.allclose(encoder(x, mask)[:1], encoder(x[:1]), atol=1e-5)
        assert torch.isfinite(encoder(x, mask)).all()   # also a record without any lead


@pytest.mark.parametrize("name", ["ST-MEM", "MELP"])
@pytest.mark.parametrize("size", ["st-mem-vit-b", "wav2vec2-cmsc", "tiny"])
def test_methods_train_in_bf16_with_every_kind_of_encoder(name, size):
    encoder, b = dict(size=size, **TINY.get(size, {})), a_batch(4)
    method = (
        melp(encoder=encoder)
        if name == "MELP"
        else build_method(name, PAPER9, encoder=encoder, decoder_width=64, decoder_depth=1)
    )
    touched = set()
    for progress in (0.0, 0.9):
        method.zero_grad()
        with torch.autocast("cpu", torch.bfloat16): total = method.loss(b, progress)["total"]
        assert torch.isfinite(total)
        total.backward()
        touched |= {k for k, p in method.named_parameters() if p.grad is not None}
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    assert {k for k, p in method.named_parameters() if p.requires_grad} == touched  # over both phases everything learns


def test_registered_and_their_needs():
    for name in ("ST-MEM", "MELP"): registered(name)
    assert METHODS["MELP"].reads_reports and not METHODS["ST-MEM"].reads_reports and METHODS["ST-MEM"].texts is None


@pytest.mark.parametrize("build", [lambda: build_method("ST-MEM", PAPER9, encoder="tiny"), melp])
def test_built_again_and_adapted(build):
    method = build().eval()
    for found in (method, method.adapting(PAPER9[:5]), method.adapting(PAPER9[:5]).restrict(PAPER9[2:4])):
        again = build_method(**found.config).eval()
        again.load_state_dict(found.state_dict())
        x = a_batch()["signals"]
        with torch.no_grad():
            assert torch.equal(again.predict(x), found.predict(x)) and found.predict(x).shape == (6, len(found.labels))
    tuned = method.adapting(PAPER9[:5])
    plain = {k: v for k, v in a_batch().items() if k in ("signals", "mask", "index")} | {
        "labels": a_batch()["labels"][:, :5]
    }
    assert torch.isfinite(tuned.loss(plain, 0.0)["total"])   # a target's batch carries no report


def test_prediction_never_reads_a_report_or_a_label():
    method = melp().eval()
    b = a_batch()
    before = method.predict(b["signals"], b["mask"])
    for k in ("report", "sentences"): b[k].fill_(9)
    b["labels"].fill_(1)
    assert torch.equal(before, method.predict(b["signals"], b["mask"]))


def test_reconstruction_ignores_labels_and_classification_the_decoder():
    b, method = a_batch(), build_method("ST-MEM", PAPER9, encoder="tiny")
    seen = []
    for labels in (b["labels"], 1 - b["labels"]):
        torch.manual_seed(0)
        seen.append(method.loss({**b, "labels": labels}, 0.2)["total"])
    assert torch.equal(*seen)
    # a log has the same columns throughout
    assert list(method.loss(b, 0.2)) == list(method.loss(b, 0.8)) == ["total", "rec", "cls"]
