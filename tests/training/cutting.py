"""Cut small runs at random moments, start them again each time, and compare them with runs that nothing interrupted.

Half of the cuts are made from inside, at the places of `cut_places`, each once before any comes again; the others come from
outside at a random time of a start. A run that comes to its end before it got all its cuts is compared, and one from the
beginning gets the rest.

    scripts/cut_runs --cuts 200 --seed 0
"""

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cut_places import AT_THE_END, IN_THE_BEGINNING, IN_THE_REHEARSAL, OF_THE_TRAINING, PLACES, SIGNALS, is_for_kill_only
from fork_server import ForkServer, Start
from small_runs import differences, write_experiment

KILL = (signal.SIGKILL,)
REHEARSALS = 0.25  # the share of runs whose starts rehearse, which takes longer
KILLS = 0.4  # the share of kill -9 where both are possible
LONGEST_DETOUR = 3  # times that a run passes a place before it is cut there
MOST_CUTS = 10  # of a run
MOST_RUNS = 60  # from the beginning, until an experiment has its cuts
FINISHED, STOPPED_EARLY, BY_KEYBOARD = 0, 75, 130
NOTHING_TO_SAVE = "while nothing was to be saved"
BATCH = ("training.batch_size=5",)
EXPERIMENTS = {
    "plain": BATCH,  # the best validation is not the last, and the rate falls
    "gradients of several batches": (
        *BATCH,
        "training.max_epochs=8",
        "training.accumulate_batches=3",
        "training.validate_every_steps=7",
    ),
    "budget of edges": (
        "training.max_edges=500",
        "potential.name='painn'",
        "training.optimizer={name='soap', basis_interval=3}",
        "training.lr_scheduler={name='cosine'}",
    ),
    "second stage": (
        *BATCH,
        "training.second_stage.start_epoch=2.5",
        "training.second_stage.learning_rate=0.003",
        "training.second_stage.energy_weight=50",
        "training.loss.forces_schedule.name='linear'",
        "training.loss.forces_schedule.end_epoch=2",
    ),
    "energies only, stopped early": (
        *BATCH,
        "training.max_epochs=12",
        "training.loss.forces_weight=0",
        "training.early_stopping={patience=3, threshold=0.02}",
        "training.optimizer.learning_rate=0.005",
    ),
}


@dataclass(frozen=True)
class Cut:
    """A cut to make: at a place within the run, or after a part of the time of an uninterrupted run."""

    signals: tuple[int, ...]
    place: str = ""
    occurrence: int = 1
    moment: float = 0.0  # between 0 and 1

    @property
    def order(self) -> int:
        """Beginning and end of a run are passed in the order of `PLACES`."""
        is_fixed = self.place in (*IN_THE_BEGINNING, *AT_THE_END)
        return PLACES.index(self.place) if is_fixed else len(IN_THE_BEGINNING)

    def in_words(self) -> str:
        """Signals and place."""
        names = " ".join(signal.Signals(number).name for number in self.signals)
        return f"{names} {self.place or f'at {self.moment:.2f} of the time'}"


@dataclass
class Tally:
    """What was done, and what was wrong."""

    num_experiments: int = 0
    num_runs: int = 0  # finished and compared
    num_left: int = 0  # files that the uninterrupted run does not leave
    cuts: list[Cut] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def places(self) -> Counter[str]:
        """How often each place was cut at."""
        return Counter(cut.place for cut in self.cuts if cut.place)

    @property
    def num_inside(self) -> int:
        """Cuts at places where a run keeps something."""
        return sum(number for place, number in self.places.items() if place not in (*OF_THE_TRAINING, IN_THE_REHEARSAL))

    def in_words(self) -> str:
        """One line, and one for all that is wrong."""
        kills, others = sum(cut.signals == KILL for cut in self.cuts), len(self.cuts) - self.num_inside
        same = "differ" if self.wrong else "equal the uninterrupted ones bit for bit"
        line = (
            f"{len(self.cuts)} cuts of {self.num_experiments} experiments: {kills} kill -9, {len(self.cuts) - kills} signals; "
            f"{self.num_inside} in validations, checkpoints, rows, test or results, {others} at other random moments; "
            f"{self.num_runs} runs came to their end and {same}; {self.num_left} files left over"
        )
        return "\n".join([line, *self.wrong])


class Cutter:
    """Starts the runs of one experiment and cuts them."""

    def __init__(self, server: ForkServer, folder: Path, settings: Sequence[str], randoms: random.Random, tally: Tally) -> None:
        self.server, self.folder, self.randoms, self.tally = server, folder, randoms, tally
        self.toml = write_experiment(folder)
        self.settings = tuple(itertools.chain.from_iterable(("--set", setting) for setting in settings))
        self.seconds = 0.0  # of the uninterrupted run
        self.with_rehearsal = False

    def cut_and_compare(self, cuts: Sequence[Cut]) -> None:
        """Make the cuts, in as many runs as that takes; each has to equal the uninterrupted one."""
        whole, begun = self.folder / "whole", time.perf_counter()
        if self.start(whole, Cut(())) != FINISHED:
            self._complain(whole, "the uninterrupted run failed")
            return
        self.seconds = time.perf_counter() - begun
        for number in range(MOST_RUNS):
            run = self.folder / f"cut_{number}"
            chosen, cuts = for_one_run(cuts)
            cuts += self._cut(run, sorted(chosen, key=lambda cut: cut.order))
            self._compare(run, whole)
            if not cuts:
                return
        self.tally.wrong.append(f"{self.folder.name}: never cut: {', '.join(cut.in_words() for cut in cuts)}")

    def _cut(self, run: Path, cuts: Sequence[Cut]) -> list[Cut]:
        """Make these cuts in a run and let it come to its end; gives those that are still to be made."""
        is_needed = any(cut.place == IN_THE_REHEARSAL for cut in cuts)
        self.with_rehearsal = is_needed or self.randoms.random() < REHEARSALS
        for number, cut in enumerate(cuts):
            code = self.start(run, cut)
            if code == FINISHED:  # it came too late
                return [replace(cut, occurrence=1, moment=cut.moment / 2), *cuts[number + 1 :]]
            self._judge(run, cut, code)
        if self.start(run, Cut(())) != FINISHED:
            self._complain(run, "a start that was not cut failed")
        return []

    def _judge(self, run: Path, cut: Cut, code: int) -> None:
        """The process is over: in one of the ways in which signals end it."""
        mark, last = run.with_suffix(".mark"), run / "checkpoints" / "last.ckpt"
        self.tally.cuts.append(cut)
        self.tally.endings[f"{' '.join(signal.Signals(number).name for number in cut.signals)} -> {code}"] += 1
        is_by_keyboard = signal.SIGINT in cut.signals and code == BY_KEYBOARD
        if cut.place and not mark.exists():
            self._complain(run, f"ended with {code} before the cut ({cut.in_words()})")
        elif code not in (STOPPED_EARLY, *(-number for number in cut.signals)) and not is_by_keyboard:
            self._complain(run, f"ended with {code} after {cut.in_words()}")
        elif code == STOPPED_EARLY and not (last.exists() or NOTHING_TO_SAVE in run.with_suffix(".txt").read_text()):
            self._complain(run, f"says that it has saved, and has not, after {cut.in_words()}")
        mark.unlink(missing_ok=True)

    def start(self, run: Path, cut: Cut) -> int:
        """The command until it ends, with a cut; its exit code."""
        start = Start(
            (
                "train",
                *(() if self.with_rehearsal else ("--skip-rehearsal",)),
                "--config",
                str(self.toml),
                *self.settings,
                "--run-folder",
                str(run),
            ),
            output=str(run.with_suffix(".txt")),
            mark=str(run.with_suffix(".mark")),
            seconds_between_saves=self.randoms.choice((0.0, 0.0, 0.05)),
            seconds_between_saves_in_a_stretch=self.randoms.choice((0.0, 0.02, 600.0)),
            has_links=self.randoms.random() > 0.2,
            place=cut.place,
            occurrence=cut.occurrence,
            signals=tuple(cut.signals) if cut.place else (),
        )
        process = self.server.begin(start)
        if cut.moment:
            time.sleep(cut.moment * self.seconds)
            for number in cut.signals:
                os.kill(process, number)
        code = self.server.exit_code()
        if code == FINISHED and not (run / "results.json").exists():
            self._complain(run, f"says that it is finished, and is not, after {cut.in_words()}")
            return STOPPED_EARLY
        return code

    def _compare(self, run: Path, whole: Path) -> None:
        self.tally.num_runs += 1
        self.tally.num_left += len(_names(run) - _names(whole))
        self.tally.wrong += [f"{run}: {difference}" for difference in differences(run, whole)]

    def _complain(self, run: Path, what: str) -> None:
        output = run.with_suffix(".txt").read_text().splitlines()
        self.tally.wrong.append(f"{run}: {what}; it said last: {' | '.join(output[-8:])}")


def _names(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def cut_runs(folder: Path, *, num_cuts: int, seed: int) -> Tally:
    """Cut a run of each experiment, `num_cuts` times in all."""
    randoms, tally = random.Random(seed), Tally(len(EXPERIMENTS))
    cuts = drawn_cuts(num_cuts, randoms)
    with ForkServer() as server:
        for number, (name, settings) in enumerate(EXPERIMENTS.items()):
            place = folder / name.replace(" ", "_").replace(",", "")
            place.mkdir()
            Cutter(server, place, settings, randoms, tally).cut_and_compare(cuts[number :: len(EXPERIMENTS)])
    return tally


def drawn_cuts(num_cuts: int, randoms: random.Random) -> list[Cut]:
    """A little more than half of them at places, without one twice before all have come."""
    num_inside = num_cuts // 2 + num_cuts // 15  # some of them in training and rehearsal, where nothing is kept
    rounds = -(-num_inside // len(PLACES))
    places = list(itertools.chain.from_iterable(randoms.sample(PLACES, len(PLACES)) for _ in range(rounds)))[:num_inside]
    inside = [Cut(_signals(randoms, place), place, _occurrence(randoms, place)) for place in places]
    # Squared: the more often a run has been cut, the less is left of it.
    outside = [Cut(_signals(randoms), moment=(1.0 - randoms.random()) ** 2) for _ in range(num_cuts - num_inside)]
    return randoms.sample([*inside, *outside], num_cuts)


def for_one_run(cuts: Sequence[Cut]) -> tuple[list[Cut], list[Cut]]:
    """Cuts that one run can have, each place once, and those for other runs."""
    chosen: list[Cut] = []
    others: list[Cut] = []
    for cut in cuts:
        is_there = bool(cut.place) and cut.place in {other.place for other in chosen}
        (others if is_there or len(chosen) == MOST_CUTS else chosen).append(cut)
    return chosen, others


def _signals(randoms: random.Random, place: str = "") -> tuple[int, ...]:
    return KILL if is_for_kill_only(place) or randoms.random() < KILLS else randoms.choice(SIGNALS)


def _occurrence(randoms: random.Random, place: str) -> int:
    return 1 if place in (*IN_THE_BEGINNING, *AT_THE_END) else randoms.randint(1, LONGEST_DETOUR)


def main() -> int:
    """Cut, tell, and fail where a run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="An empty folder for the runs, which stay there; by default a temporary one."
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        tally = cut_runs(arguments.folder or Path(temporary), num_cuts=arguments.cuts, seed=arguments.seed)
    lines = [f"{tally.places[place]:4d} {place}" for place in PLACES]
    lines += [f"{number:4d} {ending}" for ending, number in sorted(tally.endings.items())]
    sys.stdout.write("\n".join([*lines, tally.in_words(), ""]))
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
