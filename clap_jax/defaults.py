"""The whole config: every key with its default and its meaning."""

from ml_collections import ConfigDict, FieldReference


def default() -> ConfigDict:
    """The whole config with every key documented beside its default."""
    config = ConfigDict()

    # --- what is trained -------------------------------------------------------
    # A row of `clap_jax.models.zoo.SPECS`, or "init_from": the very model of the
    # checkpoint that `init_from` names, its front end and every option included. Or
    # "none", to evaluate features of segments that lie on disk (configs/probe_time.py).
    config.model = "small_transformer"
    # Changes to that row, e.g. {"audio": {"options": {"dropout": 0.1}}}.
    config.model_overrides = ConfigDict()
    # What training starts from; "" = fresh weights. A path, a hub id (owner/name,
    # owner/name/file.pt), or several of them, filled in one after another, e.g.
    # ("htsat_audioset.ckpt", "FacebookAI/roberta-base"). Each is a workdir, a step, a
    # saved model, a checkpoint of another system, or one tower alone (ours with
    # tower.json, or as published), which fills its own side. The first that brings a
    # tokenizer gives it to the run.
    config.init_from = FieldReference("", field_type=object)
    # Regex over parameter paths: which weights `init_from` fills (the rest is fresh).
    # What matches and is not there, or has another shape, is an error.
    config.init_pattern = ".*"
    # Compute dtype of the towers: float32 | bfloat16. Parameters, norms, losses and
    # mels are always float32; gradients of bfloat16 products are summed over devices in
    # bfloat16.
    config.precision = "float32"
    # Activations recomputed in the backward pass: none | dots (all but the results of
    # weight matrices) | blocks (all but the inputs of blocks). Less memory, more work.
    config.remat = "none"
    # Of a model that hears segments: so many of each clip are in the audio tower at a
    # time, and memory in training follows this, not the length of clips.
    config.segment_chunk = 4

    # --- where -----------------------------------------------------------------
    config.mesh = ConfigDict()
    # Devices along the batch axis; -1 takes all that `fsdp` leaves.
    config.mesh.data = -1
    # Devices that also shard parameters, their averages and optimizer state.
    config.mesh.fsdp = 1
    # [regex, axis] over parameter paths, first match wins: which axis is split over
    # `fsdp` (0, 1, ...; -1 is the last), "none" (replicated) or "auto" (the longest
    # that divides; small ones stay whole). What no rule matches is "auto".
    config.mesh.rules = ()
    # Seconds after which a silent host counts as dead, and all others end.
    config.mesh.heartbeat_seconds = 20

    # --- how long --------------------------------------------------------------
    config.train = ConfigDict()
    # Global batch: clip-caption pairs a step over all hosts and devices.
    config.train.batch_size = 64
    # Parts in which a batch is encoded, one after another. The loss is still that of
    # the whole batch, exactly (gradient caching): memory falls, towers run once more.
    # Batch norm and mixup see one part at a time; running statistics become the mean
    # of what the parts would make of them.
    config.train.accumulate = 1
    # Share of patches (in time), of bands and of words that towers leave out in
    # training, for speed ...
    config.train.patch_drop = 0.0
    config.train.frequency_drop = 0.0
    config.train.token_drop = 0.0
    # ... but in the last so many percent of the steps, which see everything.
    config.train.undropped_percent = 10.0
    # Exactly one of the two is positive.
    config.train.total_steps = 0
    config.train.total_epochs = 0.0
    # The one seed: initial weights, data order, crops, captions, dropout.
    config.train.seed = 0
    # A line of metrics.jsonl every so many steps.
    config.train.log_steps = 50
    # Decay of the exponential moving average of the parameters; 0 = off. When on,
    # evaluation, export and `clap_jax.load` use the average.
    config.train.ema_decay = 0.0
    # In its place the plain mean of the parameters over the last so many percent of the
    # steps (stochastic weight averaging, arXiv 1803.05407), and the newest until then.
    config.train.swa_percent = 0.0

    # --- task ------------------------------------------------------------------
    config.task = ConfigDict()
    # contrastive: clips and captions find each other | classify: heads on the audio
    # tower learn the labels of clips; there is no text tower | answer: a language model
    # writes what the `task` of each source asks (clap_jax/text/assets/tasks.json) |
    # caption: a captioner writes captions of clips. `model` of the last two is a row of
    # `clap_jax.models.captioner.SPECS`.
    config.task.name = "contrastive"
    # Of `contrastive`: weight of the loss of a decoder that learns to write the captions
    # from what the audio tower hears; 0: none. Its size: model_overrides.caption.
    config.task.caption_weight = 0.0
    # Heads of `classify`: name -> {"sources": names of the data.sources whose labels it
    # learns, "loss": ce (one label each) | bce (any number) | auto (as the clips have
    # them), "labels": its classes in order (default: those that occur, sorted),
    # "weight": of its clips in the loss}. Without any, one head learns from all.
    config.task.heads = ConfigDict()
    # What heads hear: projection (not normalised, as LAION) | normalised | embedding
    # (of the tower, without projection).
    config.task.features = "projection"
    # Widths of the layers of a head before its last: () linear | (1024,) LAION's MLP ...
    config.task.hidden = ()
    # ... and the dropout behind each of them.
    config.task.dropout = 0.1

    # The next are of the task `caption`. What guides a captioner that takes tags: source
    # (the labels of its clips) | none | a file with the probabilities that a tagger
    # gave clips, or several (clap_jax/pipeline/tag_files.py) ...
    config.task.tags = FieldReference("source", field_type=object)
    # ... of which these are taken: from a probability on, the so many likeliest, or both
    # ("0.3", "top5", "0.3_top5"). A captioner with the guide "keyword" gets their
    # probabilities, one with "event" 1 for each.
    config.task.tag_rule = "0.3_top5"
    # Share of tags that are left out in training, and of clips that lose all of theirs,
    # so that a captioner listens too, and can do without.
    config.task.tag_drop = 0.0
    config.task.untagged = 0.0
    # Share of words that the captioner hears from itself in place of the true ones at
    # the end of training; it rises from 0, step by step.
    config.task.scheduled_sampling = 0.0

    # --- loss ------------------------------------------------------------------
    config.loss = ConfigDict()
    # softmax: symmetric cross entropy over the global batch; sigmoid: every pair by
    # itself, with a learned bias (arXiv 2303.15343).
    config.loss.name = "softmax"
    # How devices share the work, exactly alike: global (the compiler's way) | gather
    # (all texts to all devices) | ring (texts go round) | auto (by batch and devices).
    config.loss.impl = "auto"
    # Rows of scores that a device has in memory at a time; 0: by their size.
    config.loss.chunk = 0
    # Share of the target that is spread over all texts, or clips; in the task `classify`,
    # where it is the only one of these keys, over a head's classes; in `answer` and
    # `caption`, likewise, over all tokens.
    config.loss.label_smoothing = 0.0
    # Negatives count in proportion to exp(this * score); 0: all alike.
    config.loss.hard_negatives = 0.0
    # True: pairs of one group (captions of one clip, clips of one label) are positives
    # of each other instead of negatives.
    config.loss.multi_positive = True

    # --- optimizer -------------------------------------------------------------
    config.optim = ConfigDict()
    # adamw | adam | lion | adafactor | muon
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.98
    config.optim.epsilon = 1e-8
    config.optim.weight_decay = 0.05
    # Adam's and Lion's first moment: float32 | bfloat16 (half the memory).
    config.optim.momentum_dtype = "float32"
    # Warm-up: a number of steps, or a percentage of the run (one of the two).
    config.optim.warmup_steps = 0
    config.optim.warmup_percent = 0.0
    # cosine (to 0) | constant, after the warm-up.
    config.optim.schedule = "cosine"
    # Largest global gradient norm; 0 = no clipping.
    config.optim.clip_norm = 1.0
    # [regex, factor] over parameter paths, first match wins, every parameter must
    # match: learning-rate multipliers (0 freezes; a tower, or a captioner's decoder, that
    # is frozen whole runs as in evaluation) ...
    config.optim.lr_multipliers = ((".*", 1.0),)
    # ... and weight-decay multipliers (biases, norms and scales are spared).
    config.optim.decay_multipliers = (
        (r".*(bias|scale|sinusoids|logit_scale\w*)|temporal/(log_\w+|mix)", 0.0),
        (".*", 1.0),
    )
    # Layer-wise decay of the rate, from each tower's top down: every block has so much
    # of the rate of the one above it, beside its multiplier. 1 = off.
    config.optim.layer_decay = 1.0

    # --- data ------------------------------------------------------------------
    config.data = ConfigDict()
    # files: what `sources` names | synthetic_device: noise that stays in the device's
    # memory, to see how fast training is without any input.
    config.data.source = "files"
    # Named sources: {"kind": manifest | array_record | tfds | laion_tar | hdf5 |
    # synthetic | pieces, "name": ..., "weight": share of the mixture (0: in proportion
    # to size), "task": with task.name=answer, options of the kind}.
    # Any of them may have "generated": a file of captions that `python -m data.caption`
    # made, or several, and "captions": which are used: none (only the clip's own) | all
    # | augment_only (generated ones where there are any) | only (and no other clips),
    # or probabilities by origin, {"original": 0.5, "t5": 0.5}. "exclude": a file of ids
    # to leave out (data.overlap). "part": "1/2", the first of two parts. "annotations":
    # {"table": path, "label": column}, clips that a table has labels or sections of, and
    # these (clap_jax/pipeline/annotations.py). "twins": true,
    # behind each clip the same with its sections, which captions name with times, in
    # another order: hard negatives of one batch where read_together is 2.
    config.data.sources = ()
    # How sizes make shares: in proportion to weight * size^(1/this), where a source
    # without a weight has weight 1. 1: each as often as it has clips; large: all alike.
    # 0: weights alone are the shares, or, where there are none, all clips are shuffled
    # together. The log says what comes of it.
    config.data.mixture_temperature = 0.0
    # Where log-mels are computed: host (workers) | device (the bus carries int16 waves) |
    # auto: device, but host for models that need the mel of the whole clip (fusion, BLAT).
    config.data.mel = "auto"
    # RAM for decoded clips, per process; 0 = off. For corpora that fit, decoding is
    # then paid once.
    config.data.cache_gib = 0.0
    # Worker processes (0: threads of this process) and threads in each of them.
    config.data.workers = 0
    config.data.threads = 4
    # Batches made ahead.
    config.data.prefetch = 4
    # Neighbouring clips that are read together, and shuffled as one block; above 1 for
    # large shards on slow or remote disks.
    config.data.read_together = 1
    # Clips that cannot be read are replaced, counted (train/bad_clips) and logged; the
    # run stops when they exceed this share of the clips seen, or of 1000 while fewer.
    config.data.max_bad_fraction = 0.01
    # Lengths that batches may have besides the full one, each a program of its own,
    # compiled when first needed; () for one length. Of texts, in tokens, special ones
    # included: a batch has the shortest that holds its captions, or prompts and answers
    # (evaluation: each text for itself). The loss is that of the full length. Only what
    # is drawn for each place differs with the length: dropout, and where stripes of
    # silence fall. A text that comes with a damaged clip's replacement is cut to fit.
    config.data.text_buckets = (16, 32)
    # Of whole clips (BLAT), in seconds; clips of one window have one length anyhow.
    config.data.audio_buckets = (2.5, 5.0)
    # Vocabulary of the tokenizer that is trained on the captions when the model names
    # no published one. The model's own vocabulary is cut to what was learnt.
    config.data.vocab_size = 4096

    # Audio augmentation on the device; fields of `clap_jax.audio.augment.Augment`.
    config.augment = ConfigDict()

    # --- evaluation ------------------------------------------------------------
    # name -> {"kind": retrieval | zeroshot | classifier (its own heads) | probe (heads
    # fitted on frozen vectors; "parts": name -> changes to the source) | answers (that a
    # captioner writes) | captions (that it writes, against people's; "decoding": {"method":
    # ..., "beams": ...}, "tags": as in task.tags) | absent (listed with its reason, not
    # done), "source": {...}, "every_steps": 0 (only at the end),
    # "batch_size": ..., "crop_seed": random crops of longer clips, as some references
    # take them, in place of the middle; "about": what the results shall say of the task;
    # options of the kind}
    config.evals = ConfigDict()

    # Cross-validation: for each fold {"name": ..., "train": rows of `data.sources`, as
    # their `where`, "test": rows of `evals`}, with a run in workdir/fold_<name>.
    config.folds = ()

    # --- checkpoints and logs --------------------------------------------------
    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 500
    # The newest so many are kept ...
    config.checkpoint.keep = 2
    # ... and the one that is best by this metric ("" = none), e.g.
    # "eval/scenes/t2a_R@1"; evaluated metrics only, higher is better.
    config.checkpoint.best_metric = ""
    config.writer = ConfigDict()
    # Beside metrics.jsonl, which is always written.
    config.writer.tensorboard = False
    config.writer.wandb_project = ""
    # A trace of so many steps (0: none) for TensorBoard's profiler, in workdir/profile
    # (of several processes each has a folder there).
    config.profile = ConfigDict()
    # Steps before it, counted from where this run (re)started, not from step 0.
    config.profile.first_step = 10
    config.profile.steps = 0
    return lock(config)


def lock(config: ConfigDict) -> ConfigDict:
    """Lock the structure; free-form sections stay open (their owners check them)."""
    config.lock()
    for section in (config.model_overrides, config.augment, config.evals):
        section.unlock()
    config.task.heads.unlock()
    return config
