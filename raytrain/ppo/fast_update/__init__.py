"""The lean PPO update of the learner: `tier` says which way, `steps` goes it.

episodes ─> `train_batch` ─> `advantages` ─> `minibatches` ─> for each: gradient
    (`mlp_policy` and `ppo_gradients` by hand, or `ppo_loss` with autograd)
    ─> `gradient_step` ─> `flat_adam`;   `metrics` at the end
"""
