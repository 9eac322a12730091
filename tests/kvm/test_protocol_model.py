"""Real machines against a model that knows every page, in any order of operations and deaths.

PAGEFERRY_STEPS says how many steps there are at least, with each mover.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, currently_in_test_context, note, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from kvm.protocol_draws import Draws
from kvm.protocol_pages import SEEN, Wish
from kvm.protocol_scene import Scene
from tests_support import IN_LANE

from vmm.guest.abi import PAGE_SIZE, Hold, Operation

STEPS = int(os.environ.get("PAGEFERRY_STEPS", "400"))
STEPS_IN_A_WORLD = 50
FULL_CHECK = 10  # every so many steps
POOLS = [40, 100, 700]
COPY_BELOW = [0, 3 * PAGE_SIZE, 1 << 30]  # bytes: none, some and all that is exchanged
STEPS_IN_A_LANE = 16
BALLAST = 480  # pages of the only large extent, so that a window of 512 is soon full

WEIGHTED = [
    *("wish",) * 16,
    *("take",) * 3,
    *("write", "sleep_or_wake") * 2,
    *("alloc", "query", "several_at_once", "nonsense"),
    *("touch", "touch", "exit", "kill", *("newcomer",) * 3),
]


class Protocol(RuleBasedStateMachine):
    """One world. `steps` and `done` are of all worlds with this mover."""

    mover = ""
    steps = 0
    done: Counter[str]

    @initialize(
        frames=st.sampled_from(POOLS),
        ballast=st.sampled_from([0, 3]),
        copy_below=st.sampled_from(COPY_BELOW),
    )
    def begin(self, frames: int, ballast: int, copy_below: int) -> None:
        self.sound = False
        self.own_steps = -1  # the first check is of no step
        self.seeds: Counter[int] = Counter()
        self.scene = Scene(self.mover, frames, copy_below, self.count)
        for role in self.scene.roles:
            self.scene.join(role)
        if frames > BALLAST:
            number = self.scene.roles[ballast].number
            self.ask(number, Wish(Operation.ALLOC, spans=((0, BALLAST),)))
        for number in self.scene.model.members:
            self.ask(number, Wish(Operation.ALLOC, spans=((0, 5),)))

    def count(self, what: str) -> None:
        self.done[what] += 1

    def ask(self, number: int, *wishes: Wish) -> None:
        for line in self.scene.ask(number, *wishes):
            if currently_in_test_context():
                note(line)

    # ---- Steps ----

    @rule(what=st.sampled_from(WEIGHTED), seed=st.integers(0, (1 << 16) - 1))
    def step(self, what: str, seed: int) -> None:
        """One rule for all steps: hypothesis would do each as often, and some in no world.

        It also likes to repeat itself: the same seed has other consequences each time.
        """
        self.sound = False  # until the next check
        rng = random.Random(f"{seed} {self.seeds[seed]}")
        self.seeds[seed] += 1
        if what in ("touch", "exit", "kill") and len(self.scene.vacant()) > 1:
            what = "newcomer"
        getattr(self, what)(Draws(rng, self.scene.model, self.scene.world))

    def alloc(self, draws: Draws) -> None:
        number = draws.actor()
        self.ask(number, draws.alloc(number))

    def wish(self, draws: Draws) -> None:
        operation = draws.operation()
        number = draws.actor(operation)
        self.ask(number, draws.wish(number, operation))

    def query(self, draws: Draws) -> None:
        number = draws.machine()
        self.ask(number, draws.query(number))

    def several_at_once(self, draws: Draws) -> None:
        """With one doorbell. Which frames are fresh is only known of the last one."""
        number = draws.machine()
        first = [draws.one_of(draws.PLAIN) for _ in range(1 + draws.up_to(2))]
        operations = [*first, draws.one_of(draws.OPERATIONS)]
        self.ask(number, *[draws.wish(number, operation) for operation in operations])

    def nonsense(self, draws: Draws) -> None:
        number = draws.machine()
        self.ask(number, draws.nonsense(number))

    def write(self, draws: Draws) -> None:
        writable = SEEN - {Hold.VIEWED}
        number = draws.actor_with(writable)
        places = self.scene.model.members[number].with_hold(writable)
        self.scene.write(number, draws.some(places, most=6))
        self.count("write")

    def take(self, draws: Draws) -> None:
        number = draws.actor_with_messages()
        self.scene.take(number, draws.one_of([1, 2, 100]))
        self.count("take")

    def sleep_or_wake(self, draws: Draws) -> None:
        """Who sleeps gets no orders, so that its messages stay in its queue."""
        number = draws.any_machine()
        member = self.scene.model.members[number]
        member.asleep = not member.asleep
        self.scene.concerned.add(number)
        self.count("sleep" if member.asleep else "wake")

    def touch(self, draws: Draws) -> None:
        number, place, access = draws.forbidden()
        if place is None:
            self.ask(number, draws.alloc(number))
        else:
            offset = 8 * draws.up_to(PAGE_SIZE // 8 - 1)
            self.scene.touch(number, place, offset, access)

    def exit(self, draws: Draws) -> None:
        self.scene.exit(draws.machine())

    def kill(self, draws: Draws) -> None:
        self.scene.end(draws.any_machine(), draws.one_of(["kill", "remove"]))

    def newcomer(self, draws: Draws) -> None:
        vacant = self.scene.vacant()
        if not vacant:
            self.wish(draws)
            return
        self.scene.join(vacant[0])
        self.count("newcomer")

    # ---- After every step ----

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        self.own_steps += 1
        type(self).steps += self.own_steps > 0
        self.scene.check(full=self.own_steps % FULL_CHECK == 0)
        self.sound = True

    def teardown(self) -> None:
        if not hasattr(self, "scene"):
            return
        try:
            if self.sound:
                self.scene.finish()
        finally:
            self.scene.world.close()


def run_without_hypothesis(protocol: type[Protocol]) -> None:
    """Run a few steps of one world: to get ready, hypothesis takes a lane longer than they do."""
    rng = random.Random(protocol.mover)
    world = protocol()
    try:
        world.begin(frames=POOLS[0], ballast=0, copy_below=COPY_BELOW[1])
        world.all_is_as_the_model_says()
        for seed in range(STEPS_IN_A_LANE):
            world.step(what=rng.choice(WEIGHTED), seed=seed)
            world.all_is_as_the_model_says()
    finally:
        world.teardown()


@pytest.mark.smaller_in_lanes("16 steps, not drawn by hypothesis, which takes a minute to be ready")
@pytest.mark.timeout(420 + STEPS // 8)  # 300 of these seconds are to make a failure smaller
def test_machines_and_their_memory_agree_with_a_model_of_every_page(mover: str) -> None:
    protocol = type("Protocol", (Protocol,), {"mover": mover, "done": Counter()})
    if IN_LANE:
        run_without_hypothesis(protocol)
        return
    while protocol.steps < STEPS:
        worlds = settings(
            max_examples=-(-(STEPS - protocol.steps) // STEPS_IN_A_WORLD),
            stateful_step_count=STEPS_IN_A_WORLD,
            deadline=None,
            report_multiple_bugs=False,
            phases=set(Phase) - {Phase.explain},
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(protocol, settings=worlds)
    print(f"{mover}: {protocol.steps} steps")
    for what, count in sorted(protocol.done.items()):
        print(f"{count:7} {what}")
