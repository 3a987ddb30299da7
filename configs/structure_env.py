"""A multi-storey building with an active tuned mass damper on its roof, in an earthquake.

The building is a shear frame: n floors of mass m [kg], between them storeys of lateral stiffness k
[N/m]. The damper is a mass m_d on the roof, held by a spring k_d and a dashpot c_d, and an actuator
between the roof and the mass pushes with u [N] (Soong 1990, ch. 3; Yang, Akbarpour and
Ghaemmaghami 1987). With z = (x_1, ..., x_n, x_d) [m], the displacements of floors and damper
relative to the ground, and the ground's acceleration a_g [m/s^2] (Chopra, Dynamics of Structures,
eq. 9.1.31 and 9.4.4):

    M z'' + C z' + K z = -M 1 a_g(t) + b u(t),      b = (0, ..., 0, -1, +1)

    M = diag(m, ..., m, m_d)
    K   tridiagonal: storeys k between neighbours (the ground is one), k_d between roof and damper
    C   of the building: the same damping ratio zeta in all of its modes (Chopra, eq. 11.4.12);
        c_d = 2 zeta_d omega_d m_d between roof and damper

Left to themselves, the damper's frequency and damping are optimal for white noise at the base of an
undamped oscillator (Warburton 1982, table 3). With mu = m_d over the mass of the first mode whose
shape is 1 at the roof, and omega_1 [rad/s] the building's first frequency:

    omega_d / omega_1 = sqrt(1 - mu / 2) / (1 + mu)
    zeta_d = sqrt(mu (1 - mu / 4) / (4 (1 + mu) (1 - mu / 2)))

The earthquake is Gaussian noise with the spectrum of Kanai (1957) and Tajimi (1960), white noise
through a layer of soil with the frequency omega_g and the damping ratio zeta_g, and without what is
slower than omega_f (Clough and Penzien, Dynamics of Structures, sec. 23-4). With
r = omega / omega_g and q = omega / omega_f:

    S(omega) = S_0 (1 + 4 zeta_g^2 r^2) / ((1 - r^2)^2 + 4 zeta_g^2 r^2)
                   q^4 / ((1 - q^2)^2 + 4 zeta_f^2 q^2)

made as a sum of cosines with random phases (Shinozuka and Deodatis 1991), shaped in time by the
envelope of Jennings, Housner and Tsai (1968): growing with t^2, then level, then decaying
exponentially; and scaled to its peak acceleration. All of it comes from the seed of `reset`.

a_g is linear between its samples, u constant over a step. For that the equations are solved
exactly, by the matrix exponential, so dt [s] bounds what can be seen, not what is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from scipy.linalg import eigh, expm

STOREY_HEIGHT = 3.0
"""m; only for drift as a ratio."""

DRIFT_LIMIT = 0.005 * STOREY_HEIGHT
"""m between two floors: the limit of damage to brittle partitions (EN 1998-1:2004, 4.4.3.2)."""


class Structure(gym.Env):
    """One episode is one earthquake.

    The action, in [-1, 1], is the actuator's force as a part of `force_limit`; zero leaves the
    passive damper. The observation, in m, m/s and m/s^2: the n drifts between neighbouring floors,
    from the ground up, and the damper's displacement relative to the roof; the velocities of all
    these; the ground's acceleration now. The reward of a step is

        -(largest drift / DRIFT_LIMIT)^2 - force_penalty (u / force_limit)^2

    and the last `info` holds, over the episode, `peak_drift` and `rms_drift` [m], `drift_ratio`
    (peak drift over the storey's height), `peak_force` and `rms_force` [N], `peak_stroke` (of the
    damper, m), `peak_roof_acceleration` (absolute, m/s^2) and the earthquake's `pga` [m/s^2].
    """

    def __init__(
        self,
        *,
        storeys: int = 5,
        floor_mass: float = 1.0e5,
        storey_stiffness: float = 5.0e7,
        damping_ratio: float = 0.02,
        damper_mass_ratio: float = 0.02,
        damper_tuning: float | None = None,
        damper_damping_ratio: float | None = None,
        force_limit: float = 50.0e3,
        pga: float = 1.5,
        pga_spread: float = 0.2,
        soil_frequency: float = 15.6,
        soil_damping: float = 0.6,
        low_cut: float = 0.1,
        duration: float = 20.0,
        dt: float = 0.02,
        force_penalty: float = 0.02,
    ) -> None:
        """
        Args:
            storeys: number of floors above the ground.
            floor_mass: kg each.
            storey_stiffness: N/m each.
            damping_ratio: of each mode of the building.
            damper_mass_ratio: the damper's mass over that of all floors; 0.02 is 10 t on 500 t.
            damper_tuning: its frequency over the building's first; None for Warburton's.
            damper_damping_ratio: of the damper on a fixed roof; None for Warburton's.
            force_limit: N, the actuator's.
            pga: m/s^2, the earthquake's peak acceleration, drawn evenly from
                pga (1 - pga_spread) to pga (1 + pga_spread).
            soil_frequency: omega_g, rad/s; 15.6 is firm ground.
            soil_damping: zeta_g.
            low_cut: omega_f / omega_g; 0 for Kanai and Tajimi's spectrum as it is.
            duration: s.
            dt: s, of a step and of the earthquake's samples.
            force_penalty: weight of the squared force.
        """
        if storeys < 1 or duration < 2 * dt:
            raise ValueError("at least one storey and two steps are needed")
        self.force_limit = float(force_limit)
        self.force_penalty = float(force_penalty)
        self.pga = (pga * (1 - pga_spread), pga * (1 + pga_spread))
        self.ground = Ground(soil_frequency, soil_damping, low_cut)
        self.dt = float(dt)
        self.steps = round(duration / dt)
        alone = frame(storeys, floor_mass, storey_stiffness, damping_ratio)
        self.structure = with_damper(alone, damper_mass_ratio, damper_tuning, damper_damping_ratio)
        push = np.zeros(storeys + 1)
        push[-2:] = -1.0, 1.0
        self._storeys = storeys
        self.system = LinearSystem(self.structure, push, self.dt)
        # The rows take a state to all drifts and the damper's stroke, and to their velocities.
        self._seen = np.kron(np.eye(2), np.eye(storeys + 1) - np.eye(storeys + 1, k=-1))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2 * storeys + 3,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.quake = np.zeros(self.steps + 1)
        self._begin()

    def _begin(self) -> None:
        self.step_number = 0
        self.state = np.zeros(2 * self._storeys + 2)
        self.seen = np.zeros(2 * self._storeys + 2)
        self._peak_drift = self._peak_force = self._peak_stroke = self._peak_acceleration = 0.0
        self._sum_drift = self._sum_force = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        pga = self.np_random.uniform(*self.pga)
        times = self.dt * np.arange(self.steps + 1)
        noise = envelope(times, times[-1]) * self.ground.noise(times, self.np_random)
        self.quake = noise * (pga / np.abs(noise).max())
        self._begin()
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        force = self.force_limit * min(max(float(action[0]), -1.0), 1.0)
        before, after = self.quake[self.step_number : self.step_number + 2]
        self.state = self.system.step(self.state, before, after, force)
        self.seen = self._seen @ self.state
        self.step_number += 1
        drift = float(np.abs(self.seen[: self._storeys]).max())
        self._note(drift, force)
        share = force / self.force_limit if self.force_limit else 0.0
        reward = -((drift / DRIFT_LIMIT) ** 2) - self.force_penalty * share**2
        truncated = self.step_number == self.steps
        return self._observation(), reward, False, truncated, self._summary() if truncated else {}

    def _observation(self) -> np.ndarray:
        return np.append(self.seen, self.quake[self.step_number]).astype(np.float32)

    def _note(self, drift: float, force: float) -> None:
        roof = self.system.absolute_acceleration(self.state, force, self._storeys - 1)
        self._peak_drift = max(self._peak_drift, drift)
        self._peak_stroke = max(self._peak_stroke, abs(float(self.seen[self._storeys])))
        self._peak_force = max(self._peak_force, abs(force))
        self._peak_acceleration = max(self._peak_acceleration, abs(roof))
        self._sum_drift += drift**2
        self._sum_force += force**2

    def _summary(self) -> dict[str, float]:
        return {
            "peak_drift": self._peak_drift,
            "rms_drift": math.sqrt(self._sum_drift / self.steps),
            "drift_ratio": self._peak_drift / STOREY_HEIGHT,
            "peak_force": self._peak_force,
            "rms_force": math.sqrt(self._sum_force / self.steps),
            "peak_stroke": self._peak_stroke,
            "peak_roof_acceleration": self._peak_acceleration,
            "pga": float(np.abs(self.quake).max()),
        }


@dataclass(frozen=True)
class Matrices:
    """`mass` (n,) [kg], `damping` (n, n) [N s/m] and `stiffness` (n, n) [N/m]."""

    mass: np.ndarray
    damping: np.ndarray
    stiffness: np.ndarray


class LinearSystem:
    """M z'' + C z' + K z = -M 1 a + b u, in steps of dt: exact for a linear from `before` to
    `after` and u constant. States are (z, z'), n displacements and n velocities."""

    def __init__(self, of: Matrices, push: np.ndarray, dt: float) -> None:
        n = len(of.mass)
        # The absolute accelerations z'' + a, of a state and of u.
        self._from_state = -np.hstack([of.stiffness, of.damping]) / of.mass[:, None]
        self._from_force = push / of.mass
        # The state, and behind it a and its change over the step, and u, as states of their own.
        whole = np.zeros((2 * n + 3, 2 * n + 3))
        whole[:n, n : 2 * n] = np.eye(n)
        whole[n : 2 * n, : 2 * n] = self._from_state
        whole[n : 2 * n, 2 * n] = -1.0
        whole[2 * n, 2 * n + 1] = 1.0 / dt
        whole[n : 2 * n, 2 * n + 2] = self._from_force
        self._transition = expm(whole * dt)[: 2 * n]

    def step(self, state: np.ndarray, before: float, after: float, force: float) -> np.ndarray:
        """The state dt later."""
        later: np.ndarray = self._transition @ np.concatenate(
            [state, [before, after - before, force]]
        )
        return later

    def absolute_acceleration(self, state: np.ndarray, force: float, index: int) -> float:
        """z'' + a of one degree of freedom: what somebody on that floor feels, m/s^2."""
        return float(self._from_state[index] @ state + self._from_force[index] * force)


def frame(storeys: int, mass: float, stiffness: float, damping_ratio: float) -> Matrices:
    """The building alone."""
    masses = np.full(storeys, float(mass))
    between = np.eye(storeys) - np.eye(storeys, k=-1)
    stiffnesses = stiffness * between.T @ between
    squares, shapes = eigh(stiffnesses, np.diag(masses))  # shapes^T M shapes = 1
    modal = 2 * damping_ratio * np.sqrt(squares)
    weighted = masses[:, None] * shapes
    return Matrices(masses, weighted @ np.diag(modal) @ weighted.T, stiffnesses)


def with_damper(
    alone: Matrices, mass_ratio: float, tuning: float | None, damping_ratio: float | None
) -> Matrices:
    """With a damper on the last floor: one degree of freedom more."""
    squares, shapes = eigh(alone.stiffness, np.diag(alone.mass))
    damper_mass = mass_ratio * alone.mass.sum()
    mu = damper_mass * shapes[-1, 0] ** 2
    optimal_tuning, optimal_damping = warburton(mu)
    frequency = math.sqrt(squares[0]) * (optimal_tuning if tuning is None else tuning)
    ratio = optimal_damping if damping_ratio is None else damping_ratio
    n = len(alone.mass)
    pair = np.zeros((n + 1, n + 1))
    pair[-2:, -2:] = [[1.0, -1.0], [-1.0, 1.0]]
    return Matrices(
        np.append(alone.mass, damper_mass),
        np.pad(alone.damping, (0, 1)) + 2 * ratio * frequency * damper_mass * pair,
        np.pad(alone.stiffness, (0, 1)) + frequency**2 * damper_mass * pair,
    )


def warburton(mu: float) -> tuple[float, float]:
    """Optimal tuning and damping ratio of a damper with the mass ratio `mu`."""
    tuning = math.sqrt(1 - mu / 2) / (1 + mu)
    return tuning, math.sqrt(mu * (1 - mu / 4) / (4 * (1 + mu) * (1 - mu / 2)))


class Ground:
    """Noise with the spectrum in the module's docstring. `low_cut` is omega_f / omega_g."""

    LOW_CUT_DAMPING = 0.6

    def __init__(self, frequency: float, damping: float, low_cut: float) -> None:
        self._frequency = frequency
        self._damping = damping
        self._low_frequency = low_cut * frequency

    def spectrum(self, omega: np.ndarray) -> np.ndarray:
        """S(omega) / S_0, of the same shape; omega in rad/s, not negative."""
        square = (omega / self._frequency) ** 2
        soil = 4 * self._damping**2 * square
        kanai_tajimi = (1 + soil) / ((1 - square) ** 2 + soil)
        # (1 - q^2)^2 q^-4 and so on, written without a division by omega_f, which may be 0.
        low = self._low_frequency**2
        loss = 4 * self.LOW_CUT_DAMPING**2 * low * omega**2
        passed = np.divide(
            omega**4,
            (low - omega**2) ** 2 + loss,
            out=np.ones_like(omega),
            where=(omega > 0) | (low > 0),
        )
        density: np.ndarray = kanai_tajimi * passed
        return density

    def noise(self, times: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A stationary sample at evenly spaced `times` [s], up to a factor; two-sided spectrum
        S, so its variance is the integral of S over all omega, S_0 = 1."""
        count = 2 * len(times)  # twice as long as asked for, since the sum is periodic
        step = 2 * np.pi / (count * (times[1] - times[0]))
        omega = step * np.arange(count // 2 + 1)
        amplitudes = np.sqrt(4 * self.spectrum(omega) * step)
        amplitudes[0] = amplitudes[-1] = 0.0  # no mean, and a cosine at half the rate has no phase
        phases = random.uniform(0.0, 2 * np.pi, len(omega))
        waves = np.fft.irfft(amplitudes * np.exp(1j * phases), count) * (count / 2)
        return waves[: len(times)]


def envelope(times: np.ndarray, duration: float) -> np.ndarray:
    """From 0 to 1 and back: rising over the first sixth, level to the half, then down to 5 %."""
    rise, level = duration / 6, duration / 2
    decay = math.log(20) / (duration - level)
    fall = np.exp(-decay * np.maximum(times - level, 0.0))
    return np.minimum(np.minimum((times / rise) ** 2, 1.0), fall)
