"""Draw the first picture of the site and the README: `python docs/picture.py` writes `docs/images/first_look.png`.

Left: what a network that learned from adults meets in a child. Right: what that costs, and what adaptation gives back.
The ECGs come from the simulator, the numbers from the kept reference tables of the profile `demo`.
"""
import csv
import io
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

PEOPLE = ((55, "adult", "A simulated man of 55 years"), (0.25, "child", "A simulated boy of three months"))   # years, population, in words
LEADS = ("II", "V1", "V6")
METHODS = ("Random", "ECG-only", "DANN", "KED", "PEACE")
WHERE = (("adult", "adults", "#7a7a7a", "o"), ("zero-shot", "children, zero-shot", "#b3424a", "D"),
         ("full", "children, adapted", "#2f6f9f", "s"))


def numbers() -> dict[tuple[str, str], tuple[float, float, float]]:
    "(method, setting) → macro AUROC in percent with its interval."
    with open(ROOT / "paper" / "reference" / "demo" / "peace" / "table_2_full.csv", encoding="utf-8", newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["label"] == "macro"]
    return {(r["method"], r["setting"]): tuple(100 * float(r[c]) for c in ("auroc", "lo", "hi")) for r in rows}


def person(years: float, population: str, wanted: str = "M"):
    "A simulated healthy person: signal (12, samples) in millivolts, and heart rate."
    from peace_nb.simulation.simulator import simulate
    found = simulate(40, population, seed=11, site="quiet", labels=("NORM",), age_days=years * 365.25)
    sex = found.table["sex"].astype(str).str.upper().str[0]
    at = int((sex == wanted).to_numpy().argmax())
    return found.signals[at], float(found.table["heart_rate"].iloc[at])


def draw_ecg(ax, signal, rate: float, title: str, seconds: float = 2.4, fs: int = 500):
    "Three leads below each other on ECG paper: large squares of 0.2 s by 0.5 mV."
    import numpy as np
    from peace_nb.signals.prepare import LEADS as ORDER
    n, step = round(seconds * fs), 2.5
    top, low = 1.5, -1.5 - step * (len(LEADS) - 1)
    for x in np.arange(0, seconds + .01, .2): ax.axvline(x, color="#f0c9c9", lw=.7, zorder=0)
    for y in np.arange(low, top + .01, .5): ax.axhline(y, color="#f0c9c9", lw=.7, zorder=0)
    for i, lead in enumerate(LEADS):
        trace = signal[list(ORDER).index(lead), fs:fs + n]
        ax.plot(np.arange(n) / fs, trace - np.median(trace) - step * i, color="black", lw=1)
        ax.text(.03, .75 - step * i, lead, fontsize=9, weight="bold")
    ax.set(xlim=(0, seconds), ylim=(low, top), xticks=[], yticks=[])
    ax.set_title(f"{title}\n{rate:.0f} beats a minute", fontsize=10, loc="left")
    for side in ax.spines.values(): side.set_visible(False)


def draw_numbers(ax, found: dict):
    "A row per method, a point per group of patients."
    for i, method in enumerate(METHODS):
        y = len(METHODS) - i
        for k, (setting, words, colour, marker) in enumerate(WHERE):
            value, lo, hi = found[method, setting]
            ax.plot([lo, hi], [y + .2 - .2 * k] * 2, color=colour, lw=2)
            ax.plot(value, y + .2 - .2 * k, marker, color=colour, ms=6, label=words if i == 0 else None)
    ax.set_yticks(range(len(METHODS), 0, -1), METHODS, fontsize=10)
    ax.set(ylim=(.4, len(METHODS) + .6), xlabel="macro AUROC, %")
    ax.set_title("What the difference costs a network,\nand what adaptation gives back", fontsize=10, loc="left")
    ax.grid(axis="x", color="#dddddd", lw=.7)
    ax.legend(loc="upper center", bbox_to_anchor=(.45, -.15), ncols=3, fontsize=8.5, frameon=False, columnspacing=1, handletextpad=.2)
    for side in ("top", "right", "left"): ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)


def draw():
    "The whole picture, as a figure."
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(11.5, 4), width_ratios=(1, 1, 1.1))
    for ax, (years, population, words) in zip(axes, PEOPLE): draw_ecg(ax, *person(years, population), words)
    draw_numbers(axes[2], numbers())
    fig.text(.01, .01, "All patients are simulated, the two on the left healthy; a square is 0.2 s by 0.5 mV. Right: reference run of the profile demo, 95 % intervals over patients.", fontsize=8, color="#555555")
    fig.tight_layout(rect=(0, .03, 1, 1), w_pad=2)
    return fig


def main():
    from peace_nb.pipeline.kept import shrink_png
    raw = io.BytesIO()
    draw().savefig(raw, format="png", dpi=110)
    target = ROOT / "docs" / "images" / "first_look.png"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(shrink_png(raw.getvalue(), width=1265, colours=64))
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__": main()
