import jax.numpy as jnp
import pytest

from cka_sr_jax.accounting import interleaved_seconds, timing


def test_rivals_take_turns_and_the_median_is_of_one_call(monkeypatch):
    now, order = [0.0], []

    def rival(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds
            return jnp.zeros(())

        return call

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    calls = {"slow": rival("slow", 2.0), "fast": rival("fast", 0.5)}
    found = interleaved_seconds(calls, repeats=3, inner={"fast": 2})
    assert found == {"slow": pytest.approx(2.0), "fast": pytest.approx(0.5)}
    warm_up, turns = order[:2], order[2:]
    assert warm_up == ["slow", "fast"]
    assert turns == ["slow", "fast", "fast", "fast", "fast", "slow", "slow", "fast", "fast"]
