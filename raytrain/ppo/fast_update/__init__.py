"""The lean PPO update of the learner: `eligibility` says which way, `minibatch_loop` goes it.

episodes ─> `train_batch` ─> `advantages` ─> `minibatches` ─> for each: gradient
    (`mlp_network` and `loss_gradients` by hand, or `loss` with autograd)
    ─> `gradient_step` ─> `flat_adam`;   `metrics` at the end
"""
