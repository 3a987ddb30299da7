"""Stock RLlib PPO under Tune as a person would write it, for `startup.py`:
`stock_startup.py DIR RUNNERS`."""

import sys

from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig

config = (
    PPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=int(sys.argv[2]), num_envs_per_env_runner=8)
    .training(train_batch_size_per_learner=512, minibatch_size=64, num_epochs=2, lr=3e-4)
    .rl_module(model_config={"fcnet_hiddens": [64, 64]})
    .debugging(seed=0)
)
tune.Tuner(
    "PPO",
    param_space=config,
    run_config=tune.RunConfig(
        name="stock", storage_path=sys.argv[1], stop={"training_iteration": 1}, verbose=0
    ),
).fit()
