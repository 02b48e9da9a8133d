"""A tiny model, 8 steps of 16 clips, saved every second and evaluated every fourth."""

from clap_jax import config as config_lib


def get_config(argument=None):
    config = config_lib.default()
    small = {"options": {"depth": 1, "width": 64, "heads": 1}}
    config.model = "small_transformer"
    config.model_overrides = {"audio": small, "text": small, "embed_dim": 32}
    config.train.batch_size = 16
    config.train.total_steps = 8
    config.train.log_steps = 1
    config.train.ema_decay = 0.9
    # Gradients that are nothing but rounding, as those of the keys' biases, would make
    # steps of full size otherwise.
    config.optim.epsilon = 1e-4
    config.data.sources = ({"kind": "synthetic", "split": "train", "examples": 64},)
    config.data.mel = "host"
    config.evals.kinds = {
        "kind": "zeroshot",
        "source": {"kind": "synthetic", "split": "kinds", "examples": 20},
        "every_steps": 4,
        "batch_size": 8,
    }
    config.checkpoint.every_steps = 2
    config.checkpoint.keep = 9
    config.checkpoint.best_metric = "eval/kinds/zeroshot_acc"
    return config
