"Results by age: bounds of the bands, groups that nobody is in, curves that follow the thresholds of adults, and features of the domains."
import numpy as np
import pandas as pd
import pytest
from peace_nb.simulation.believability import amplitudes, median_beat, qrs_bounds
from peace_nb.ages.norms import AGE_BANDS, AGE_EDGES, NORMS
from peace_nb.simulation.simulator import simulate_block
from peace_nb.ages.bands import YEAR, bands as bands_of, cut
from peace_nb.evaluation.age import adult_thresholds, by_group, error_by_age, local_rate, shared_labels
from peace_nb.evaluation.metrics import combine_seeds
from peace_nb.settings import PeaceError


def reader(n=400, seed=0, prefix="c"):
    "Predictions of two labels and their people, ages from a day to adulthood."
    rng = np.random.default_rng(seed)
    ids = np.array([f"{prefix}{i}" for i in range(n)])
    people = pd.DataFrame(
        {"age_days": np.exp(rng.uniform(0, np.log(9000), n)), "sex": rng.choice(["F", "M"], n)},
        index=pd.Index(ids, name="record_id")
    )
    people["band"] = cut(people["age_days"], "reports")
    truth = {"NORM": rng.random(n) < .6, "RVH": rng.random(n) < .3}
    rows = [
        pd.DataFrame(
            dict(
                record_id=ids, patient_id=ids, label=k, score=np.clip(0.5 * t + rng.normal(0.3, 0.15, n), 0, 1),
                truth=t.astype(float)
            )
        )
        for k, t in truth.items()
    ]
    return pd.concat(rows, ignore_index=True), people


def test_bands_have_no_gap():
    days = np.arange(0, 17 * 366)
    code = cut(days, "reports").codes
    assert (np.diff(code) >= 0).all() and set(code) == set(range(len(bands_of("reports"))))
    assert (
        cut([30.99], "reports")[0] == "0–30 d"
        and cut([31], "reports")[0] == "1–12 mo"
        and cut([16 * YEAR], "reports")[0] == "adult"
    )
    assert cut([np.nan], "reports").isna().all()
    with pytest.raises(PeaceError, match="negative"): cut([-1], "reports")


def test_groups_add_up_and_agree_with_the_whole():
    pred, people = reader()
    one = by_group(pred, people.assign(everyone="all"), "everyone", n_boot=20)
    whole = combine_seeds([pred], n_boot=20)
    assert np.allclose(one["auroc"], whole["auroc"]) and np.allclose(one["lo"], whole["lo"])
    bands = by_group(pred, people, n_boot=0)
    assert bands.groupby("level", observed=True)["records"].first().sum() == len(people)
    assert list(dict.fromkeys(bands["level"])) == list(bands_of("reports"))


def test_order_of_people_does_not_matter():
    pred, people = reader()
    a = by_group(pred, people, "sex", n_boot=10)
    b = by_group(pred, people.sample(frac=1, random_state=1), "sex", n_boot=10)
    pd.testing.assert_frame_equal(a, b)


def test_one_class_is_listed_and_not_scored():
    pred, people = reader()
    infants = people.index[people["band"] == "1–12 mo"]
    pred.loc[pred["record_id"].isin(infants) & (pred["label"] == "RVH"), "truth"] = 0.0
    t = by_group(pred, people, n_boot=0)
    row = t[(t["level"] == "1–12 mo") & (t["label"] == "RVH")].iloc[0]
    assert not row["scored"] and np.isnan(row["auroc"]) and "positives" in row["reason"]
    assert shared_labels(t, least=1) == ("NORM",)


def test_unknown_people_and_columns_are_refused():
    pred, people = reader()
    with pytest.raises(PeaceError, match="'c0'"): by_group(pred, people.drop("c0"))
    with pytest.raises(PeaceError, match="no column 'race'"): by_group(pred, people, "race")
    with pytest.raises(PeaceError, match="no predictions"): by_group({}, people)


def test_threshold_of_adults_keeps_its_word_and_moves_with_age():
    adults, _ = reader(2000, seed=1, prefix="a")
    cut = adult_thresholds(adults, .9)
    neg = adults[adults["truth"] == 0]
    assert (neg.assign(c=neg["score"] > neg["label"].map(cut)).groupby("label")["c"].mean() - .1).abs().max() < .011
    pred, people = reader(3000, seed=2)
    young = pred["record_id"].map(people["age_days"]).to_numpy() < 365
    pred.loc[young & (pred["label"] == "RVH").to_numpy(), "score"] += .6          # infants' hearts look like RVH
    t = error_by_age(pred, people, cut, labels=("RVH",), n_boot=50)
    fp = t[t["kind"] == "false positive"].set_index("age_days")["rate"]
    assert fp[fp.index < 150].min() > .9 and fp[fp.index > 2000].max() < .3
    with pytest.raises(PeaceError, match="specificity"): adult_thresholds(adults, 1)


def test_seeds_must_be_of_the_same_records():
    pred, people = reader()
    cut = adult_thresholds(pred)
    with pytest.raises(PeaceError, match="same records"):
        error_by_age({0: pred, 1: pred[pred["record_id"] != "c3"]}, people, {0: cut, 1: cut})


def test_repeated_records_of_one_patient_widen_the_interval():
    rng = np.random.default_rng(0)
    age, calls = np.full(200, 1000.0), (rng.random(20) < .5).repeat(10).astype(float)
    wide = local_rate(calls, age, np.arange(20).repeat(10), at=[1000], n_boot=400).iloc[0]
    narrow = local_rate(calls, age, np.arange(200), at=[1000], n_boot=400).iloc[0]
    assert wide["hi"] - wide["lo"] > 2 * (narrow["hi"] - narrow["lo"])


def test_predictions_of_one_class_only_give_no_curve():
    pred, people = reader(50)
    t = error_by_age(pred, people, adult_thresholds(pred), n_boot=0, least=1e9)
    assert t["rate"].isna().all()


@pytest.mark.parametrize("band", [0, 4, 9, 11])
def test_visible_qrs_and_v6_of_healthy_children(band):
    "What was wrong once: a QRS that ends too early after five years, and a deep Q in V6."
    ages = np.expm1(np.linspace(*np.log1p(AGE_EDGES[band:band + 2]), 102)[1:-1])
    s = simulate_block(900 + band, "child", seed=5, age_days=ages, labels=("NORM",), seconds=4, site="quiet")
    width, q = [], []
    for i in range(0, 100, 3):
        x = s.signals[i].astype(float)
        step = 60 / s.table["heart_rate"].iloc[i] * 500
        at = [int(t * 500 + .4 * s.table["qrs_ms"].iloc[i] / 2) for t in s.beats[i].qrs]
        beat, middle = median_beat(x, [k for k in at if 0 < k < x.shape[1]], 500)
        if not np.isfinite(beat).all(): continue
        bounds = qrs_bounds(beat, middle, 500, min(1, step / 430))
        if bounds is None: continue
        width.append((bounds[1] - bounds[0]) * 2)
        q.append(amplitudes(beat, *bounds, None, 0, 500)["Q"][11])
    norm = NORMS[(NORMS["band"] == AGE_BANDS[band]) & (NORMS["measure"] == "qrs_ms")]["p50"].iloc[0]
    assert abs(np.median(width) / norm - 1) < .10
    if band > 7: assert np.median(q) < .3
