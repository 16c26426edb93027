"""What each part of trimming is worth: one recipe, several arms that change it, several seeds, the same scenes for all.

    python -m benchmarks.ablation benchmarks/studies/components.yaml --jobs 2

A study is a YAML file: `recipe` (a recipe of `policytrim train trim`), `changes` (for all arms), `seeds`, and `arms` (name:
its changes). Every arm and seed is one run of `policytrim train trim` in runs/studies/<study>/<arm>-<seed>; a study that was
interrupted goes on where it stopped. The baseline is measured once. Writes docs/results/studies/<study>.md, .png and .json
with every episode's outcome, of the arms that are finished: a table of an unfinished study says which are missing.

SR and N over all episodes of all seeds; S over the successes; intervals 95 %, Wilson for SR, percentile bootstrap over episodes
for the rest, which does not include the spread between training seeds: that is shown as the range of the seeds' means.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml
from tqdm import tqdm

from benchmarks.results import markdown
from policytrim_ros.core.statistics import bootstrap_mean, wilson
from policytrim_ros.files import replace_file
from policytrim_ros.policies.checkpoint import read_manifest
from policytrim_ros.training.evaluate import read_reports, write_reports
from policytrim_ros.training.figures import LARGE, save_figure
from policytrim_ros.training.version import commit

HEAD = ("arm", "seeds", "n", "h", "SR %", "seeds", "S", "seeds", "saved", "N", "fewer calls")
BASELINE = "baseline"
KINDS = ("baseline", "evidence")
"""Files of a run whose rows about the baseline serve all runs."""

FINISHED = (0, 3)
"""Exit codes of `policytrim train trim`: an improvement, and none."""


class Study:
    """One study file. KeyError, with the name, for a missing part."""

    def __init__(self, path: Path, runs: Path):
        values = yaml.safe_load(path.read_text())
        self.name, self.recipe, self.seeds = path.stem, values["recipe"], values["seeds"]
        self.about, self.arms, self.changes = values["about"], values["arms"], values.get("changes", {})
        self.runs = runs / self.name

    def run_dir(self, arm: str, seed: int) -> Path:
        return self.runs / f"{re.sub('[^a-z0-9.]+', '_', arm.lower())}-{seed}"

    def play(self, arm: str, seed: int) -> int:
        """Runs or resumes one arm with one seed; its exit code."""
        run_dir = self.run_dir(arm, seed)
        run_dir.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:  # what is known of the baseline need not be played again
            kept = self.runs / f"{BASELINE}_{kind}.json"
            if kept.exists() and not (run_dir / f"{kind}.json").exists():
                write_reports(run_dir / kind, read_reports(kept))
        changes = [f"{name}={json.dumps(value)}" for name, value in {**self.changes, **self.arms[arm]}.items()]
        command = [sys.executable, "-m", "policytrim_ros.cli", "train", "trim", "--recipe", self.recipe, "--seed", str(seed)]
        command += ["--run", str(run_dir), "--out", str(run_dir / "published"), "--lanes", "16", "--set", *changes]
        with open(run_dir / "log.txt", "a") as log:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        if code in FINISHED and not (self.runs / f"{BASELINE}_evidence.json").exists():
            self._keep_baseline(run_dir)
        return code

    def _keep_baseline(self, run_dir: Path) -> None:
        made = read_manifest(run_dir / "trimmed")["made"]
        for kind in KINDS:
            rows = rows_of(run_dir / f"{kind}.json", made["parent"], made["execution_horizon"][0])
            write_reports(self.runs / f"{BASELINE}_{kind}", rows)

    def finished(self, arm: str, seed: int) -> list[dict] | None:
        """Reports of the trimmed policy, one a task, or None."""
        run_dir = self.run_dir(arm, seed)
        if not (run_dir / "trimmed" / "manifest.json").exists():
            return None
        manifest = read_manifest(run_dir / "trimmed")
        if "verdict" not in manifest["made"]:
            return None
        weights = manifest["files"]["model.safetensors"]
        return rows_of(run_dir / "evidence.json", weights, manifest["contract"]["execution_horizon"])

    def baseline(self) -> list[dict]:
        return read_reports(self.runs / f"{BASELINE}_evidence.json")


def rows_of(path: Path, weights: str, horizon: int) -> list[dict]:
    """Rows of one policy at one horizon; a run that gained nothing ends with the weights of its baseline."""
    return [row for row in read_reports(path) if (row["weights_sha256"], row["horizon"]) == (weights, horizon)]


def summed(rows_of_seeds: list[list[dict]]) -> dict:
    """Figures of an arm: over all its episodes, and of each seed alone."""
    parts = [[episode for row in rows for episode in row["episodes_list"]] for rows in rows_of_seeds]
    episodes = [episode for part in parts for episode in part]
    won = [e for e in episodes if e["outcome"] == "success"]
    rates = [np.mean([e["outcome"] == "success" for e in part]) for part in parts]
    steps = [np.mean([e["steps"] for e in part if e["outcome"] == "success"] or [np.nan]) for part in parts]
    return {
        "n": len(episodes),
        "horizons": sorted({row["horizon"] for rows in rows_of_seeds for row in rows}),
        "success": [len(won) / len(episodes), *wilson(len(won), len(episodes))],
        "success_of_seeds": [float(rate) for rate in rates],
        "steps": list(bootstrap_mean([e["steps"] for e in won])),
        "steps_of_seeds": [float(value) for value in steps],
        "calls": list(bootstrap_mean([e["calls"] for e in won])),
    }


def table(study: Study, found: dict[str, dict]) -> str:
    base = found[BASELINE]
    rows = []
    for arm, row in found.items():
        rate, low, high = (100 * value for value in row["success"])
        steps = "{:.1f} [{:.1f}, {:.1f}]".format(*row["steps"])
        calls = "{:.1f} [{:.1f}, {:.1f}]".format(*row["calls"])
        rows.append((
            arm, len(row["success_of_seeds"]) if arm != BASELINE else "-", row["n"], ", ".join(map(str, row["horizons"])),
            f"{rate:.1f} [{low:.1f}, {high:.1f}]", _range(100 * np.array(row["success_of_seeds"])), steps,
            _range(row["steps_of_seeds"]), f"{100 * (1 - row['steps'][0] / base['steps'][0]):.0f} %", calls,
            f"{base['calls'][0] / row['calls'][0]:.2f} x",
        ))  # fmt: skip
    return markdown(HEAD, rows)


def _range(values) -> str:
    values = [value for value in values if np.isfinite(value)]
    return f"{min(values):.0f} to {max(values):.0f}" if len(values) > 1 else "-"


def draw(path: Path, found: dict[str, dict]) -> None:
    """Success rate against control steps: every seed a small point, every arm its mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=LARGE, layout="constrained")
    axes = figure.subplots()
    for number, (arm, row) in enumerate(found.items()):
        marker = "*" if arm == BASELINE else "os^vDPX"[number // 10 % 7]
        (line,) = axes.plot(row["steps"][0], row["success"][0], marker, markersize=9, label=f"{arm} (h = {row['horizons'][-1]})")
        axes.plot(row["steps_of_seeds"], row["success_of_seeds"], marker, markersize=4, alpha=0.5, color=line.get_color())
    axes.set(xlabel="control steps S of successes (fewer is better)", ylabel="success rate SR")
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside right upper")
    save_figure(figure, path)


def report(study: Study, out: Path) -> str:
    """Writes what is finished; the page."""
    rows = {arm: [study.finished(arm, seed) for seed in study.seeds] for arm in study.arms}
    missing = [f"{arm}-{seed}" for arm in study.arms for seed, row in zip(study.seeds, rows[arm]) if row is None]
    found = {BASELINE: summed([study.baseline()])}
    found |= {arm: summed(kept) for arm, of_seeds in rows.items() if (kept := [row for row in of_seeds if row])}
    commits = sorted({row["commit"] for of_seeds in rows.values() for kept in of_seeds if kept for row in kept})
    page = [
        f"# Study: {study.name}",
        "",
        study.about.strip(),
        "",
        table(study, found),
        "",
        *(__doc__.strip().split("\n\n")[-1].splitlines()),
        "",
        f"![SR against S]({study.name}.png)",
        "",
        *([f"**Not finished: {', '.join(missing)}.**", ""] if missing else []),
        f"`python -m benchmarks.ablation benchmarks/studies/{study.name}.yaml`, runs made at commits {', '.join(commits)}, table at {commit()}.",
    ]
    text = "\n".join(page) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    kept = {arm: [[_short(row) for row in of_seed] for of_seed in of_seeds if of_seed] for arm, of_seeds in rows.items()}
    kept[BASELINE] = [[_short(row) for row in study.baseline()]]
    replace_file(out / f"{study.name}.json", (json.dumps({"summary": found, "episodes": kept}) + "\n").encode())
    replace_file(out / f"{study.name}.md", text.encode())
    draw(out / f"{study.name}.png", found)
    return text


def _short(row: dict) -> dict:
    """A report with its episodes as [seed, success, steps, calls]."""
    names = ("task", "horizon", "weights_sha256", "commit", "first_seed")
    episodes = [[e["seed"], int(e["outcome"] == "success"), e["steps"], e["calls"]] for e in row["episodes_list"]]
    return {name: row[name] for name in names} | {"episodes": episodes}


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="benchmarks/studies/*.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), help="directory of all runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results/studies"), help="directory of the results")
    parser.add_argument("--only-report", action="store_true", help="train nothing; tables of what is finished")
    options = parser.parse_args(arguments)
    study = Study(options.study, options.runs)
    # seed by seed, so that an unfinished study has every arm before it has the second seed of any
    open_runs = [(arm, seed) for seed in study.seeds for arm in study.arms if study.finished(arm, seed) is None]
    failed = []
    if not options.only_report and open_runs:
        first, *others = open_runs
        codes = [study.play(*first)]  # alone: it measures the baseline for all
        with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(open_runs), initial=1, unit="run") as bar:
            for code in pool.map(lambda run: study.play(*run), others):
                bar.update()
                codes.append(code)
        failed = [run for run, code in zip(open_runs, codes) if code not in FINISHED]
        for arm, seed in failed:
            print(f"ablation: {arm}-{seed} failed; see {study.run_dir(arm, seed)}/log.txt")
    if not any(study.finished(arm, seed) for arm in study.arms for seed in study.seeds):
        print("ablation: no run is finished yet")
        return 1
    print(report(study, options.out))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
