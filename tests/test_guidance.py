"""Real-time chunking: what of a plan counts how much, and a flow policy that goes on from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from policy_samples import observation, policy

from policytrim_ros.core.commitment import Commitment, prefix_weights, remainder
from policytrim_ros.core.replanning import Replanner
from policytrim_ros.policies.guidance import guidance_weight, guided_velocity

E = np.e


@pytest.fixture(scope="module", params=[0.0, 0.7], ids=["ode", "cps"])
def flow(request):
    torch.manual_seed(0)
    return policy(acting_noise=request.param)


# ---- the plan that is left --------------------------------------------------------------------------------------------


def test_certain_actions_count_fully_and_the_others_less_the_further_away_they_are():
    found = prefix_weights(certain=2, left=4, horizon=6)
    c = [2 / 3, 1 / 3]  # (n - i) / (n - d + 1) for i = 2, 3
    assert found == pytest.approx([1.0, 1.0, *(x * (E**x - 1) / (E - 1) for x in c), 0.0, 0.0])
    assert found[2:4] == pytest.approx([0.36771, 0.07675], abs=1e-5)


@pytest.mark.parametrize("certain, left, found", [(3, 3, [1, 1, 1, 0]), (4, 4, [1] * 4), (0, 1, [0.18877, 0, 0, 0])])
def test_a_plan_that_is_all_certain_has_no_soft_part_and_one_that_is_all_soft_has_no_certain_one(certain, left, found):
    assert prefix_weights(certain, left, 4) == pytest.approx(found, abs=1e-5)


def test_the_remainder_of_a_plan_begins_with_the_step_of_the_new_chunk():
    old = np.arange(70.0).reshape(10, 7)
    left = remainder(old, old_first=20, first=26, certain=3)
    assert np.array_equal(left.actions, old[6:]) and left.certain == 3
    assert remainder(old, 20, 28, certain=3).certain == 2
    assert remainder(old, 20, 30, 3) is None and remainder(old, 20, 19, 3) is None


@pytest.mark.parametrize(
    "actions, certain", [(np.zeros((0, 7)), 0), (np.zeros((2, 6)), 0), (np.zeros((2, 7)), 3), ([[np.nan] * 7], 0)]
)
def test_a_plan_that_cannot_be_one_is_refused(actions, certain):
    with pytest.raises(ValueError, match="plan of shape|cannot be certain"):
        Commitment(actions, certain)


def test_what_is_played_before_a_chunk_arrives_is_certain_as_far_as_it_was_sent():
    replanner = Replanner("rtc", 5, 20.0)
    assert replanner.committed(0, True, 0.1) == 0  # nothing was sent
    replanner.sent(10, 9, 0.0)
    assert replanner.committed(15, True, 0.1) == 3  # two control steps, and the one that is playing
    assert replanner.committed(17, True, 0.34) == 2  # it ends before the chunk is there
    assert replanner.committed(15, False, 0.1) == 0 and replanner.committed(25, True, 0.1) == 0


# ---- the flow ---------------------------------------------------------------------------------------------------------


def test_the_guided_velocity_is_that_of_the_equations():
    """A velocity 2 x has x0 = (1 - 2 tau) x and the Jacobian 1 - 2 tau, which the product must contain."""
    x, tau = torch.tensor([[[1.0, 3.0], [2.0, 4.0]]]), 0.25
    found = guided_velocity(lambda x: 2 * x, x, tau, torch.tensor([[[5.0], [7.0]]]), torch.tensor([[1.0, 0.5]]))
    factor = (0.25**2 + 0.75**2) / (0.25 * 0.75) * 0.5
    assert found[0].tolist() == [[pytest.approx(2 - factor * (5 - 0.5)), 6.0], [pytest.approx(4 - factor * 0.5 * (7 - 1)), 8.0]]


def test_guidance_is_limited_where_the_equations_leave_it_infinite():
    assert guidance_weight(1.0) == 5.0 and guidance_weight(0.5) == pytest.approx(2.0) and guidance_weight(0.01, 3.0) == 3.0


def plans(flow, seen, certain):
    """What the policy said with another seed, two steps later, of which ``certain`` actions are to be kept."""
    return [Commitment(chunk[2:], certain) for chunk in flow.predict(seen, seeds=[8, 9])]


@pytest.mark.parametrize("steps", [4, 10])
def test_a_guided_chunk_begins_as_the_plan_goes_on(flow, steps):
    seen = observation()
    left = plans(flow, seen, 4)
    free = flow.predict(seen, seeds=[1, 2], steps=steps)
    bound = flow.predict(replace(seen, committed=left), seeds=[1, 2], steps=steps)
    for row, plan in enumerate(left):
        near, far = (np.abs(chunk[row, :4] - plan.actions).max() for chunk in (bound, free))
        assert near < 0.1 * far


def test_the_plan_is_absolute_whatever_the_setpoint_of_the_new_observation(flow):
    seen = observation()
    moved = replace(seen, state=seen.state + np.float32(0.05), committed=plans(flow, seen, 4))
    inputs = flow.inputs(moved)
    np.testing.assert_allclose(
        flow.to_robot(inputs.plan, inputs.state)[:, :4, :6], [plan.actions[:, :6] for plan in moved.committed], atol=1e-6
    )
    bound = flow.predict(moved, seeds=[1, 2])
    np.testing.assert_allclose(bound[:, :4, :6], [plan.actions[:, :6] for plan in moved.committed], atol=0.05)


def test_without_a_plan_sampling_is_what_it_was(flow):
    seen = observation()
    assert np.array_equal(flow.predict(replace(seen, committed=[None, None]), seeds=[1, 2]), flow.predict(seen, seeds=[1, 2]))


def test_rows_with_and_without_a_plan_do_not_mix(flow):
    seen = observation(batch=3)
    left = Commitment(flow.predict(seen, seeds=[7, 8, 9])[1, 2:], 2)
    longer = Commitment(flow.predict(seen, seeds=[7, 8, 9])[2, 1:], 4)
    together = flow.predict(replace(seen, committed=[None, left, longer]), seeds=[1, 2, 3])
    np.testing.assert_allclose(together[0], flow.predict(seen, seeds=[1, 2, 3])[0], atol=1e-6)
    for row, plan in ((1, left), (2, longer)):
        images = {name: pictures[row : row + 1] for name, pictures in seen.images.items()}
        alone = replace(
            seen, images=images, state=seen.state[row : row + 1], instruction=[seen.instruction[row]], committed=[plan]
        )
        np.testing.assert_allclose(together[row : row + 1], flow.predict(alone, seeds=[row + 1]), atol=1e-5)


def test_a_guided_chunk_is_a_function_of_its_seed_and_leaves_no_gradients(flow):
    seen = observation()
    seen = replace(seen, committed=plans(flow, seen, 2))
    assert np.array_equal(flow.predict(seen, seeds=[1, 2]), flow.predict(seen, seeds=[1, 2]))
    assert not np.array_equal(flow.predict(seen, seeds=[1, 2]), flow.predict(seen, seeds=[3, 4]))
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_a_plan_for_every_row_or_none(flow):
    with pytest.raises(ValueError, match="1 plans for 2 observations"):
        replace(observation(), committed=[None])
