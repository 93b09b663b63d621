"""Puts known faults into a copy of the code, one at a time, and says which test notices.

    python tests/mutants.py --list
    python tests/mutants.py --only fairness-sign
    python tests/mutants.py --jobs 2

Each fault ("mutant") is a replacement of text that must occur exactly once; where the code has
changed, the script says so, and the mutant has to be aimed anew. A mutant is killed by the first
test that fails with it and passes without it. The status is 1 where one survives. Not part of CI:
all mutants together take the better part of an hour.
"""

# ruff: noqa: T201 (it is a script)
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("dasvit", "tune", "benchmarks", "tests", "pyproject.toml")

ARCHITECT = "dasvit/search/architect.py"
LOOP = "dasvit/search/loop.py"
STEP = "dasvit/search/step.py"
BASE = "dasvit/methods/base.py"
DASVIT = "dasvit/methods/dasvit.py"
DERIVE = "dasvit/spaces/cell/derive.py"
PRUNE = "dasvit/spaces/cell/prune.py"
INHERIT = "dasvit/spaces/cell/inherit.py"
TOKENS = "dasvit/spaces/cell/tokens.py"
EDGES = "dasvit/spaces/cell/edges.py"
CANDIDATES = "dasvit/spaces/cell/candidates.py"
CHOOSE = "dasvit/search/choose.py"

Edit = tuple[str, str, str]
"""A file, a text that occurs once in it, and what takes its place."""

MUTANTS: dict[str, list[Edit]] = {
    # Fairness (Eq. 16-19)
    "fairness-sign": [(ARCHITECT, "(val_loss + penalty, [", "(val_loss - penalty, [")],
    "fairness-sign-of-skip": [(DASVIT, "return skip + self.type_", "return -skip + self.type_")],
    "fairness-sign-above": [(DASVIT, "(total - self.gamma_max)", "(self.gamma_max - total)")],
    "fairness-sign-below": [(DASVIT, "(self.gamma_min - total)", "(total - self.gamma_min)")],
    "fairness-without-zeta1": [(DASVIT, "self.zeta1 * (total", "(total")],
    "fairness-without-zeta2": [(DASVIT, "self.zeta2 * (self", "(self")],
    "fairness-without-a": [(DASVIT, "skip = self.skip_weight * skip_loss", "skip = skip_loss")],
    "fairness-without-b": [(DASVIT, "skip + self.type_weight * self._type", "skip + self._type")],
    "fairness-per-edge-of-the-mean": [(DASVIT, 'by_edge if scope == "edge" else', "")],
    # The step (Algorithm 1, lines 11-14)
    "no-alpha-step": [(STEP, "self.arch_optimizer.step()", "pass")],
    "no-alpha-decay": [(STEP, "weight_decay=method.alpha_weight_decay", "weight_decay=0.0")],
    "second-order-sign": [
        (ARCHITECT, "gradient - xi * torch.where", "gradient + xi * torch.where")
    ],
    "virtual-step-sign": [(ARCHITECT, "train_grads, alpha=-xi", "train_grads, alpha=xi")],
    "epsilon-without-norm": [(ARCHITECT, "= 0.01 / norm", "= torch.full_like(norm, 0.01)")],
    # The schedule
    "rate-one-step-early": [(LOOP, "_before * steps + count)", "_before * steps + count + 1)")],
    "rate-one-step-late": [(LOOP, "_before * steps + count)", "_before * steps + count - 1)")],
    "cosine-over-the-other-span": [(LOOP, 'lr_span == "stage"', 'lr_span != "stage"')],
    "cosine-twice-as-far": [
        (LOOP, "steps=epochs_in_all * steps", "steps=2 * epochs_in_all * steps")
    ],
    "same-alpha-order-in-every-epoch": [(LOOP, '"alpha order", self.epoch', '"alpha order", 0')],
    "same-weight-order-in-every-epoch": [(LOOP, '"weight order", self.epoch', '"weight order", 0')],
    # Between the stages (lines 4-8, 17-18)
    "prune-the-highest": [(PRUNE, "(last[i], -row[i], i)", "(last[i], row[i], i)")],
    "alpha-not-carried": [
        (LOOP, "method.carried(old.named_arch(), columns).items()", "dict[str, Tensor]().items()")
    ],
    "alpha-reset": [(BASE, 'if self.inherit_alpha == "reset":', "if True:")],
    "layers-reversed": [(INHERIT, "[layer % old.num_layers]", "[-1 - layer % old.num_layers]")],
    "layers-reversed-if-stretched": [
        (INHERIT, "sources[layer * old.num_layers //", "sources[-1 - layer * old.num_layers //")
    ],
    # Derivation (line 21)
    "derive-with-zero": [(DERIVE, "            if name != ZERO\n", "")],
    "one-edge-too-few": [(DERIVE, "[: edges_per_node - 1]", "[: edges_per_node - 2]")],
    "ties-to-the-later-edge": [(DERIVE, "-item[0], item[1].source", "-item[0], -item[1].source")],
    "ties-to-the-later-candidate": [(DERIVE, "(score, -i, name)", "(score, i, name)")],
    "ties-keep-the-later": [(PRUNE, "(last[i], -row[i], i)", "(last[i], -row[i], -i)")],
    "scores-in-float32": [(BASE, ".detach().double().softmax", ".detach().softmax")],
    # Token selection (Eq. 13-15)
    "top-k-of-the-lowest": [(TOKENS, "scores.topk(k, dim=1)", "scores.topk(k, 1, False)")],
    # What a method says of skips and edges
    "skips-not-dropped": [(LOOP, "        model.supernet.drop_skips(", "        (")],
    "least-score-ignored": [
        (LOOP, "least_score=self.config.method.least_score", "least_score=-math.inf")
    ],
    "most-skips-ignored": [(LOOP, "most_skips=self.config.method.most_skips", "most_skips=None")],
    # Methods of others, and what chooses in alpha's place
    "channels-not-shuffled": [(EDGES, ".transpose(-1, -2).flatten(-2)", ".flatten(-2)")],
    "bypass-without-weight": [(EDGES, "others = weights.sum() * tokens", "others = tokens")],
    "edge-weights-without-n": [("dasvit/methods/pcdarts.py", "append(n * beta", "append(beta")],
    "gdas-gradient-to-all": [
        ("dasvit/methods/gdas.py", "* (1 + soft - soft.detach())", "+ soft - soft.detach()")
    ],
    "draws-may-be-blind": [(CANDIDATES, "first = sees.to(", "first = torch.ones_like(sees).to(")],
    "perturbation-keeps-the-least": [(CHOOSE, "int(scores[edge].argmax())", "1")],
    "draws-by-few-images": [(CHOOSE, "-score(genotype, val))", "0)")],
    "no-way-back": [(LOOP, "self._go_back()\n        kept", "kept")],
    # Resumption
    "resume-without-rng": [(LOOP, 'set_rng_state(state["rng"], self.device)', "pass")],
    "resume-without-weight-optimizer": [
        (LOOP, 'self.step.weight_optimizer.load_state_dict(state["weight_optimizer"])', "pass")
    ],
    "resume-without-alpha-optimizer": [
        (LOOP, 'self.step.arch_optimizer.load_state_dict(state["arch_optimizer"])', "pass")
    ],
    "resume-without-data-order": [  # it begins anew with each process
        (LOOP, "        self.stage = 0\n", "        self.stage = self.began = 0\n"),
        (LOOP, '"weight order", self.epoch', '"weight order", self.epoch - self.began'),
        (
            LOOP,
            '["epoch"], state["seconds"]\n',
            '["epoch"], state["seconds"]\n        self.began = self.epoch\n',
        ),
    ],
}

FOLDERS = ("tests/methods", "tests/spaces", "tests/conformance", "tests/search")
FIRST = {
    ARCHITECT: ["tests/search/test_step.py", "tests/search/test_architect.py"],
    STEP: ["tests/search/test_step.py"],
    LOOP: [f"tests/search/test_{name}.py" for name in ("schedule", "stages", "resume")],
}
"""Where to look first for a fault in a file, so that a kill is quick."""


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: the test that killed it, or none; and how long that took."""

    killer: str | None
    seconds: float


def mutated(edits: Sequence[Edit]) -> dict[str, str]:
    """The files that a mutant changes, with their new text.

    Raises:
        ValueError: a text does not occur exactly once.
    """
    files: dict[str, str] = {}
    for path, old, new in edits:
        text = files.get(path) or (ROOT / path).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{old!r} occurs {text.count(old)} times in {path}; aim it anew")
        files[path] = text.replace(old, new)
    return files


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[bool, str]:
    """Whether tests pass in a tree, and what pytest printed; the first failure ends it."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *tests],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest could not run (status {done.returncode}):\n{done.stdout}")
    return done.returncode == 0, done.stdout


def judge(name: str, folders: Sequence[str]) -> Outcome:
    """Try one mutant.

    Raises:
        ValueError: it cannot be applied.
        RuntimeError: the tests do not run, or what fails with it fails without it, too.
    """
    files, started = mutated(MUTANTS[name]), time.monotonic()
    hints = [test for path in files for test in FIRST.get(path, []) if (ROOT / test).exists()]
    with tempfile.TemporaryDirectory(prefix="mutant-") as temporary:
        tree = Path(temporary)
        for part in COPIED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, tree / part)
        for path, text in files.items():
            (tree / path).write_text(text, encoding="utf-8")
        passed, output = run_tests(tree, [*hints, *folders])
        killer = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", output, re.MULTILINE)
        if not passed:
            assert killer is not None, output
            for path in files:
                shutil.copy(ROOT / path, tree / path)
            if not run_tests(tree, [killer[1]])[0]:
                raise RuntimeError(f"{killer[1]} fails without {name}, too")
    return Outcome(killer[1] if killer else None, time.monotonic() - started)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=MUTANTS, help="these alone")
    parser.add_argument("--list", action="store_true", help="show the mutants and try none")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help=f"default: {' '.join(FOLDERS)}")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (default: 1)")
    args = parser.parse_args(argv)
    names = args.only or list(MUTANTS)
    for name in names:  # all of them can be applied
        changes = mutated(MUTANTS[name])
        if args.list:
            print(f"{name}: {', '.join(changes)}")
    if args.list:
        return 0
    folders = args.tests or [folder for folder in FOLDERS if (ROOT / folder).is_dir()]
    survivors = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        found = pool.map(lambda name: judge(name, folders), names)
        for name, outcome in zip(names, found, strict=True):
            survivors += outcome.killer is None
            what = outcome.killer or "SURVIVES"
            print(f"{name:32} {what} ({outcome.seconds:.0f} s)", flush=True)
    print(f"{len(names) - survivors} of {len(names)} killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
