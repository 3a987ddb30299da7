"""configs/structure_env.py against closed forms: oscillators, modes, Warburton's
optimum, the spectrum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.linalg import eigh, solve_continuous_lyapunov
from scipy.optimize import minimize
from scipy.signal import welch
from structure_env import (
    Ground,
    LinearSystem,
    Matrices,
    Structure,
    envelope,
    frame,
    warburton,
    with_damper,
)

MASS, STIFFNESS = 2.0e3, 8.0e4
OMEGA = math.sqrt(STIFFNESS / MASS)


def oscillator(damping_ratio: float, dt: float) -> LinearSystem:
    damping = 2 * damping_ratio * OMEGA * MASS
    one = Matrices(np.array([MASS]), np.array([[damping]]), np.array([[STIFFNESS]]))
    return LinearSystem(one, np.array([1.0]), dt)


def test_free_vibration_of_a_single_degree_of_freedom() -> None:
    """Chopra, eq. 2.2.4: x0 e^(-zeta w t) (cos wd t + zeta / sqrt(1 - zeta^2) sin wd t)."""
    zeta, dt = 0.05, 0.02
    damped = OMEGA * math.sqrt(1 - zeta**2)
    system, state = oscillator(zeta, dt), np.array([0.1, 0.0])
    for step in range(1, 501):
        state = system.step(state, 0.0, 0.0, 0.0)
        t = step * dt
        swing = math.cos(damped * t) + zeta / math.sqrt(1 - zeta**2) * math.sin(damped * t)
        assert state[0] == pytest.approx(0.1 * math.exp(-zeta * OMEGA * t) * swing, abs=1e-12)


def test_a_constant_force_and_a_growing_acceleration_are_solved_exactly() -> None:
    force, slope, dt = 400.0, 3.0, 0.1  # a tenth of a period: no scheme of low order would do
    system = oscillator(0.0, dt)
    pushed = dragged = np.zeros(2)
    for step in range(1, 101):
        pushed = system.step(pushed, 0.0, 0.0, force)
        dragged = system.step(dragged, slope * (step - 1) * dt, slope * step * dt, 0.0)
        t = step * dt
        assert pushed[0] == pytest.approx(force / STIFFNESS * (1 - math.cos(OMEGA * t)), abs=1e-12)
        ramp = -slope / OMEGA**2 * (t - math.sin(OMEGA * t) / OMEGA)
        assert dragged[0] == pytest.approx(ramp, abs=1e-10)


def harmonic_error(dt: float) -> float:
    """The largest error at resonance from rest; a(t) = sin(w t), undamped: x is known."""
    system, state, worst = oscillator(0.0, dt), np.zeros(2), 0.0
    for step in range(1, round(10.0 / dt) + 1):
        before, after = np.sin(OMEGA * dt * np.array([step - 1, step]))
        state = system.step(state, before, after, 0.0)
        t = step * dt
        exact = -(math.sin(OMEGA * t) - OMEGA * t * math.cos(OMEGA * t)) / (2 * OMEGA**2)
        worst = max(worst, abs(state[0] - exact))
    return worst


def test_harmonic_ground_motion_at_resonance() -> None:
    """Chopra, eq. 3.1.12. All of the error is that a sine is not piecewise linear: order two."""
    amplitude = 10.0 * OMEGA / (2 * OMEGA**2)
    coarse, fine = harmonic_error(0.02), harmonic_error(0.01)
    assert fine < 5e-4 * amplitude
    assert coarse / fine == pytest.approx(4.0, rel=0.02)


def test_frequencies_and_damping_ratios_of_the_frame() -> None:
    """Of n equal storeys: 2 sqrt(k / m) sin((2 j - 1) pi / (2 (2 n + 1))), j = 1, ..., n."""
    n, mass, stiffness, ratio = 6, 1.2e5, 4.0e7, 0.03
    made = frame(n, mass, stiffness, ratio)
    squares, shapes = eigh(made.stiffness, np.diag(made.mass))
    j = np.arange(1, n + 1)
    expected = 2 * math.sqrt(stiffness / mass) * np.sin((2 * j - 1) * np.pi / (2 * (2 * n + 1)))
    np.testing.assert_allclose(np.sqrt(squares), expected, rtol=1e-10)
    modal = shapes.T @ made.damping @ shapes
    np.testing.assert_allclose(modal, np.diag(2 * ratio * expected), atol=1e-9)


def energy(env: Structure) -> float:
    """Kinetic and elastic, in J."""
    x, v = np.split(env.state, 2)
    return float(v @ (env.structure.mass * v) + x @ env.structure.stiffness @ x) / 2


def test_energy_is_kept_without_damping_and_lost_with_it() -> None:
    start = 0.01 * np.sin(np.arange(12.0))
    for ratio in (0.0, 0.02):
        env = Structure(damping_ratio=ratio, damper_damping_ratio=ratio)
        env.reset(seed=0)
        env.quake[:] = 0.0
        env.state = start
        energies = [energy(env)]
        for _ in range(900):
            env.step(np.zeros(1))
            energies.append(energy(env))
        if ratio == 0:
            assert energies == pytest.approx([energies[0]] * 901, rel=1e-9)
        else:
            assert np.all(np.diff(energies) < 0)
            assert energies[-1] < 1e-2 * energies[0]


def test_the_actuator_works_what_the_structure_gains() -> None:
    """Undamped, no earthquake: the change of energy in a step is u times the growth
    of the stroke."""
    env = Structure(damping_ratio=0.0, damper_damping_ratio=0.0)
    env.reset(seed=0)
    env.quake[:] = 0.0
    for action in np.random.default_rng(1).uniform(-1, 1, (200, 1)):
        before, stroke = energy(env), env.seen[5]
        env.step(action)
        work = env.force_limit * action[0] * (env.seen[5] - stroke)
        assert energy(env) - before == pytest.approx(work, abs=1e-6)


def variance(tuning: float, damping_ratio: float, mu: float) -> float:
    """Of the displacement of an undamped oscillator with a damper, on a base of white noise."""
    alone = Matrices(np.ones(1), np.zeros((1, 1)), np.ones((1, 1)))
    made = with_damper(alone, mu, tuning, damping_ratio)
    state = np.block([[np.zeros((2, 2)), np.eye(2)], [-made.stiffness, -made.damping]])
    state[2:] /= made.mass[:, None]
    noise = np.zeros((4, 4))
    noise[2:, 2:] = 1.0
    return float(solve_continuous_lyapunov(state, -noise)[0, 0])


@pytest.mark.parametrize("mu", [0.01, 0.05])
def test_the_damper_is_tuned_to_the_optimum(mu: float) -> None:
    found = minimize(
        lambda pair: variance(pair[0], pair[1], mu),
        (1.0, 0.1),
        method="Nelder-Mead",
        options={"xatol": 1e-6},
    )
    assert warburton(mu) == pytest.approx(tuple(found.x), rel=1e-4)


def test_the_damper_that_is_installed_is_the_one_asked_for() -> None:
    made = with_damper(frame(5, 1e5, 5e7, 0.0), 0.02, 0.9, 0.1)
    omega = 0.9 * 2 * math.sqrt(5e7 / 1e5) * math.sin(math.pi / 22)
    assert made.mass[-1] == pytest.approx(0.02 * 5e5)
    assert made.stiffness[-1, -1] == pytest.approx(omega**2 * made.mass[-1])
    assert made.damping[-1, -1] == pytest.approx(2 * 0.1 * omega * made.mass[-1])


def kanai_tajimi(omega: np.ndarray, omega_g: float, zeta_g: float) -> np.ndarray:
    square = (2 * zeta_g * omega_g * omega) ** 2
    return (omega_g**4 + square) / ((omega_g**2 - omega**2) ** 2 + square)


@pytest.mark.parametrize("low_cut", [0.0, 0.2])
def test_the_ground_moves_with_the_spectrum_of_kanai_and_tajimi(low_cut: float) -> None:
    omega_g, zeta_g, dt = 12.0, 0.4, 0.02
    ground, random = Ground(omega_g, zeta_g, low_cut), np.random.default_rng(5)
    times = dt * np.arange(2048)
    samples = np.array([ground.noise(times, random) for _ in range(300)])
    hertz, density = welch(samples, fs=1 / dt, nperseg=512, detrend=False)
    omega = 2 * np.pi * hertz
    # One-sided per Hz, from two-sided per rad/s.
    measured = density.mean(axis=0) / (4 * np.pi)
    expected = kanai_tajimi(omega, omega_g, zeta_g)
    if low_cut:
        low = low_cut * omega_g
        expected *= omega**4 / ((low**2 - omega**2) ** 2 + (2 * 0.6 * low * omega) ** 2)
    band = (omega > 2.0) & (omega < 140.0)
    np.testing.assert_allclose(measured[band], expected[band], rtol=0.12)
    fine = np.linspace(0.0, np.pi / dt, 200_001)[1:]
    whole = kanai_tajimi(fine, omega_g, zeta_g)
    if low_cut:
        whole *= fine**4 / ((low**2 - fine**2) ** 2 + (2 * 0.6 * low * fine) ** 2)
    assert samples.var() == pytest.approx(2 * whole.mean() * fine[-1], rel=0.02)


def test_an_earthquake_grows_and_dies_away_and_has_its_peak() -> None:
    times = np.linspace(0.0, 30.0, 301)
    shape = envelope(times, 30.0)
    assert shape[0] == 0.0
    assert np.all(shape[50:151] == 1.0)
    assert shape[-1] == pytest.approx(0.05)
    env = Structure(pga=2.0, pga_spread=0.25)
    peaks = []
    for seed in range(40):
        env.reset(seed=seed)
        peaks.append(np.abs(env.quake).max())
        assert env.quake[0] == 0.0
    assert 1.5 <= min(peaks) < 1.6
    assert 2.4 < max(peaks) <= 2.5


def test_a_seed_is_an_earthquake_and_the_next_one_is_another() -> None:
    first, second = Structure(), Structure()
    first.reset(seed=7)
    second.reset(seed=7)
    assert np.array_equal(first.quake, second.quake)
    first.reset()
    assert not np.array_equal(first.quake, second.quake)
    second.reset()
    assert np.array_equal(first.quake, second.quake)


def play(env: Structure, action: float, seed: int = 3) -> tuple[list[float], dict[str, float]]:
    env.reset(seed=seed)
    rewards: list[float] = []
    info: dict[str, Any] = {}
    ended = False
    while not ended:
        assert info == {}
        _, reward, terminated, ended, info = env.step(np.array([action], np.float32))
        assert not terminated
        rewards.append(reward)
    return rewards, info


def test_what_is_reported_at_the_end() -> None:
    env = Structure(pga=2.0, pga_spread=0.0, force_penalty=0.0, force_limit=100e3)
    rewards, info = play(env, 0.5)
    assert len(rewards) == 1000
    assert info["peak_force"] == info["rms_force"] == 50e3
    assert info["pga"] == pytest.approx(2.0)
    assert info["drift_ratio"] == pytest.approx(info["peak_drift"] / 3.0)
    assert info["peak_drift"] == pytest.approx(0.015 * math.sqrt(-min(rewards)))
    assert info["rms_drift"] == pytest.approx(0.015 * math.sqrt(-np.mean(rewards)))
    assert all(type(value) is float for value in info.values())


def test_the_action_is_a_part_of_the_force_limit() -> None:
    weak, strong = Structure(force_limit=50e3), Structure(force_limit=150e3)
    for env in (weak, strong):
        env.reset(seed=1)
        env.quake[:] = 0.0
    for _ in range(50):
        weak.step(np.array([0.6]))
        strong.step(np.array([0.2]))
    np.testing.assert_allclose(weak.state, strong.state, rtol=1e-12)
    weak.step(np.array([7.0]))  # no actuator does more than it can
    strong.step(np.array([1 / 3]))
    np.testing.assert_allclose(weak.state, strong.state, rtol=1e-9)
    assert weak.observation_space == strong.observation_space
    assert weak.action_space == strong.action_space


def test_the_force_is_paid_for_and_nothing_else_is_hidden_in_the_reward() -> None:
    free, costly = Structure(force_penalty=0.0), Structure(force_penalty=0.5)
    difference = np.subtract(play(free, 0.8)[0], play(costly, 0.8)[0])
    np.testing.assert_allclose(difference, 0.5 * 0.64, rtol=1e-6)


def test_the_observation_holds_the_present_and_not_the_coming_acceleration() -> None:
    env, other = Structure(), Structure()
    env.reset(seed=1)
    other.reset(seed=1)
    other.quake[301:] = 99.0
    for step in range(300):
        seen, told = env.step(np.zeros(1))[0], other.step(np.zeros(1))[0]
        assert np.array_equal(seen, told), step
        assert seen[-1] == np.float32(env.quake[step + 1])
    assert not np.array_equal(env.step(np.zeros(1))[0], other.step(np.zeros(1))[0])


def test_the_passive_damper_helps() -> None:
    """Warburton's damper against one that is too light to do anything."""
    without, with_it = Structure(damper_mass_ratio=1e-6), Structure()
    drifts = [
        [play(env, 0.0, seed)[1]["rms_drift"] for seed in range(8)] for env in (without, with_it)
    ]
    assert np.mean(drifts[1]) < 0.8 * np.mean(drifts[0])
