"""The fast PPO update of the learner: `FastUpdate.of(learner)` in `update` is the one way in.

`eligibility` says which learners it serves. For each minibatch the gradient comes from
`mlp_network` and `loss_gradients` (by hand) or from `loss` (autograd), and `gradient_step` and
`flat_adam` apply it.
"""
