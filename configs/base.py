"""Every setting once: what it means, its unit, its default and where that comes from.

The other files in this folder are differences from this one. Any key can be set on the command line:
`--config.optim.learning_rate=1e-5`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config():
    """Builds the defaults: the paper's settings, no data set."""
    config = ConfigDict()
    config.seed = 0
    config.method = "stpl"  # what adapts: a name in stpl_jax/methods/__init__.py
    config.source_free = False  # drop every term that needs source data: the starred rows of da_vsn, vat_vst and tps
    config.compare_with = ("source_only", "bn_statistics")  # rows that --mode=auto runs beside `method`
    config.steps = placeholder(int)  # if set, every row stops after this many steps; schedules stay
    # The source model: a working directory (its row source_only), a folder of checkpoints, or one of them.
    config.init_from = placeholder(str)
    config.from_checkpoint = False  # take network, classes, size and flow.scale from the checkpoint of init_from
    config.pretrain_from = placeholder(str)  # checkpoint that source training starts from (ImageNet weights, say)
    config.num_frames = 2  # T, frames that STPL fuses
    config.clips_per_device = 1  # paper's batch, public code of DA-VSN and TPS
    config.auxiliary_weight = 0.1  # of the auxiliary classifier in supervised and self-training losses (DA-VSN, TPS)
    config.cpu_devices = 1  # devices to split the CPU into; used where there is no accelerator
    # XLA's flags for the CPU. This one schedules for memory: without it a full-size step asks for far more of it.
    config.cpu_xla_flags = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    config.log_every = 20  # steps
    config.compilation_cache = True  # keep compiled programs in the working directory, for resumed and repeated runs

    config.data = data = ConfigDict()
    data.classes = "viper"  # label setting: viper (15 classes), synthia_seq (12), cityscapes_seq (19) or camvid (11)
    data.class_names = ()  # the model's classes by name, in place of a label setting's
    data.prepared_dir = placeholder(str)  # default: <workdir>/data
    data.skip_bad = False  # leave out clips with bad files instead of stopping
    data.crop = (0, 0)  # random crop (height, width) where training has labels; (0, 0): whole frames (public code)
    data.threads = 4  # decoding threads
    data.workers = 0  # decoding processes; 0: threads alone
    data.prefetch = 8  # clips decoded ahead
    data.source = ConfigDict(
        dict(
            name="viper",
            raw_dir=placeholder(str),  # the owner's folder
            drive=placeholder(str),  # of camvid: 0001TP, 0006R0, 0016E5, 0016E5_dense or Seq05VD
            train_split="train",
            size=(720, 1280),  # (height, width) that frames are resized to
            list=placeholder(str),  # file of clip names that restricts the set
            flow_dir=placeholder(str),  # flow files: see flow.files; --mode=flow writes them
            offsets=(0, 1),  # frames kept of a clip: 0 is x_t, 1 is x_{t-1}
            flow_pairs=((0, 1),),
        )
    )
    data.target = ConfigDict(
        dict(
            name="cityscapes_seq",
            raw_dir=placeholder(str),
            drive=placeholder(str),
            # Of own_video: frames per second within a clip (as recorded, at most 30, if not set); most clips to adapt
            # on; and the share of each video, at its end, that is held out.
            frames_per_second=placeholder(float),
            fit=True,  # of own_video: as many pixels as `size` has, in the ratio of sides that most of the material has
            max_clips=1000,
            held_out=0.2,
            train_split="train",
            val_split="val",
            size=(512, 1024),
            list=placeholder(str),
            val_list=placeholder(str),
            flow_dir=placeholder(str),
            val_flow_dir=placeholder(str),
            offsets=(0, 1),
            flow_pairs=((0, 1),),
        )
    )

    config.world = ConfigDict(
        dict(generate=False)
    )  # settings of input_pipeline/world/generate.py, see configs/synthetic.py

    config.flow = ConfigDict()
    config.flow.estimator = "dis"  # what estimates: dis (OpenCV's, on the host) or flownet2 (on the devices)
    # none: estimated while sets are prepared, on the host; read: from files of data.*.flow_dir; write: from files, too,
    # once those that are missing have been estimated, into data.*.flow_dir or <workdir>/flow
    config.flow.files = "none"
    config.flow.weights = placeholder(str)  # of flownet2: what `python -m stpl_jax.convert flownet2` wrote
    config.flow.size = "training"  # of the frames whose flow files are estimated: training, or raw (as the set ships)
    config.flow.batch = 4  # pairs on each device while flow files are estimated
    config.flow.scale = "align_corners"  # how resizing scales flow; public: as DA-VSN and TPS do, about 1.4% off

    config.model = model = ConfigDict()
    model.name = "accel"  # a name in stpl_jax/models/__init__.py
    model.dtype = "float32"  # of the backbone's arithmetic
    # How x_{t-1}'s scores come to x_t, to be fused: warp, or splat (DA-VSN's code: nearest pixel, holes are 0).
    model.fusion = ConfigDict(dict(propagation="warp"))
    model.classifier_dilations = (6, 12, 18, 24)  # of accel, as model.backbone
    model.backbone = ConfigDict(
        dict(
            blocks=(3, 4, 23, 3),  # ResNet-101
            widths=(64, 128, 256, 512),
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            expansion=4,
            stem_width=64,
            stem_kernel=7,
            stem_pool=True,
            remat="convolutions",  # what is computed again for the backward pass: none, convolutions (all else), narrow
        )
    )

    model.espnet = ConfigDict(
        dict(
            p=2,  # residual blocks of the second level
            q=8,  # and of the third
            widths=(16, 64, 128),  # channels of the three levels
            reinforced_skip=False,  # the decoder takes the first level with the image beside it; it depends on the file
            mean=(72.3923111, 82.90893555, 73.15840149),  # BGR, 0-255, of the images that it was trained on: Cityscapes
            deviation=(45.3192215, 46.15289307, 44.91483307),
        )
    )

    config.batch_norm = ConfigDict()
    config.batch_norm.mode = "batch"  # batch: statistics of each frame on each device; sync: over devices; running
    config.batch_norm.average_over = "all"  # groups that enter the running averages: all (PyTorch's way) or clean
    # Share of the source's statistics in those that a row trains and is scored with, blended once with the target's
    # (α-BN) and fixed from then on. 0: as published, by `mode`.
    config.batch_norm.prior = 0.0
    config.batch_norm.prior_clips = 100  # of the target, whose statistics are taken
    config.batch_norm.choose_prior = False  # choose that share without labels, instead of `prior`; not of online rows

    config.optim = optim = ConfigDict()  # paper, section 4.1
    # paper: this optimiser for every method; own: what methods.<method>.own says in its place, and `clips_per_device`,
    # which the publications count on one device
    optim.profile = "paper"
    optim.learning_rate = 2.5e-6
    optim.steps = 20_000  # steps to run
    optim.decay_steps = 20_000  # steps until the schedule reaches 0
    optim.warmup_steps = 0  # steps in which the rate rises from a tenth, in a line; the decay counts from step 0
    optim.accumulate = 1  # groups of clips_per_device clips on each device, one after the other, that make one step
    optim.power = 0.9
    optim.momentum = 0.9
    optim.nesterov = False
    optim.weight_decay = 5e-4  # public code of DA-VSN and TPS
    optim.clip_norm = 0.0  # 0: no clipping
    # (parameters, learning rate factor): a group (normalisation, backbone, classifiers, main_classifier,
    # auxiliary_classifier, score_fusion), or a regular expression on their paths, such as ^projection/
    optim.multipliers = ()
    optim.frozen = ()  # further parameters to freeze, named likewise

    # Settings of each method, by its name.
    config.methods = ConfigDict()
    # Of source_only and oracle. `mirror`, here and below: half of the labelled clips are mirrored, at random, as each
    # method's public code does or does not (source_only: the code of DA-VSN).
    config.methods.supervised = ConfigDict(dict(mirror=False))
    config.methods.alpha_bn = ConfigDict(
        dict(alpha=0.5)
    )  # weight of the target's statistics; the source's has the rest
    config.methods.ubna = ConfigDict(  # UBNA, WACV 2022; values of its public code
        dict(
            momentum=0.1,  # of the first step, η_0
            decay_rate=0.08,  # α of η_k = η_0 · exp(-α · k)
            own=dict(clips_per_device=6, steps=50),
        )
    )
    # Methods that predict by each frame's own statistics: `frame_statistics`, here and below, is their weight; the
    # running ones have the rest.
    config.methods.cbna = ConfigDict(dict(frame_statistics=0.2))  # CBNA, 2022; its public code
    # Online: each clip is predicted, then trained on. `own`: the rates that the publications scale to a batch of one.
    config.methods.tent = ConfigDict(  # Tent, ICLR 2021
        dict(
            frame_statistics=1.0,
            own=dict(learning_rate=2.5e-4 / 64, weight_decay=0.0),  # of ImageNet: 2.5e-4 for 64 images
        )
    )
    config.methods.sar = ConfigDict(  # SAR, ICLR 2023; values of its public code
        dict(
            frame_statistics=1.0,
            reliable=0.4,  # pixels count whose entropy is below this share of the largest, ln K
            radius=0.05,  # ρ, length of the step to the sharper point
            average_decay=0.9,  # of the moving average of the loss
            recovered_below=0.2,  # nats: an average below brings the source model's parameters back
            own=dict(learning_rate=2.5e-4 / 32, weight_decay=0.0),
        )
    )
    config.methods.cotta = ConfigDict(  # CoTTA, CVPR 2022; values of its public code for segmentation
        dict(
            frame_statistics=1.0,
            learning_rate=7.5e-6,  # of Adam, in place of optim.learning_rate
            betas=(0.9, 0.999),
            scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),  # of the copies that pseudo-labels are averaged over
            confidence=0.69,  # of the source model; above it the teacher's direct prediction is the pseudo-label
            teacher_decay=0.999,
            restored=0.01,  # share of the student's parameters that are set back in each step
        )
    )
    config.methods.self_training = ConfigDict(dict(topk=dict(proportion=0.7, per_class=False)))
    config.methods.stpl = stpl = ConfigDict()
    stpl.objective = "stpl"  # stpl, spatial, temporal, duplicate, naive (paper, section 3.3)
    stpl.fusion = "stam"  # stam, concat, conv1x1, add (paper, Table 4)
    stpl.fusion_init = "random"  # of conv1x1: random, or average (starts as the mean over frames)
    stpl.head_multiplier = 1.0  # factor on the learning rate of the projection head and the fusion
    stpl.topk = ConfigDict(dict(proportion=0.7, per_class=False))  # k of the paper, section 4.1
    stpl.projection = ConfigDict(dict(hidden=2048, dim=128, init="random"))  # random or identity
    stpl.contrast = ConfigDict(
        dict(
            temperature=0.07,  # paper, section 4.1
            scope="clip",  # which pixels contrast: clip (paper), device, global
            block=1024,  # most queries, and most keys, compared at a time: speed and memory, not the result
            class_power=0.0,  # weigh each query by its class's pixel count to this power; 0: all alike (paper)
        )
    )
    stpl.warp_keys = False  # temporal objective: warp the previous frame's features (paper: the whole block is off)
    stpl.previous_gradient = True  # let gradient into the previous frames' features
    stpl.key_gradient = True  # let gradient into the augmented view
    stpl.augment = ConfigDict(
        dict(
            blur_probability=0.6,
            blur_radii=(5, 7, 9),  # pixels at a height of 512
            jitter_probability=0.8,
            brightness=0.8,
            contrast=0.8,
            saturation=0.8,
            hue=0.2,
            per_frame=False,  # draw for each frame of a clip apart
        )
    )
    config.methods.stpl_plus = ConfigDict(  # ours
        dict(
            topk=dict(proportion=0.9, per_class=True),
            class_power=-0.5,  # weigh each pixel by its class's pixel count to this power
            augmented_weight=0.3,  # of the augmented clip's cross-entropy; the clean clip's has 1
            teacher_decay=0.99,  # of the moving average that makes the pseudo-labels
            augment=stpl.augment.to_dict(),
        )
    )
    config.methods.ur = ConfigDict(  # Uncertainty Reduction, CVPR 2021; values of its public code
        dict(
            proportion=0.2,  # share of each class's pixels that reaches the class's threshold
            pseudo_labels="source",  # network that makes them: source, or current, the one that is trained
            label_statistics="running",  # what normalises while labels are made: running, or batch, as batch_norm says
            view=dict(  # of the clip, that the network is trained on
                scale=(0.5, 1.5),  # smallest and largest factor of the frame's size
                crop=(1.0, 1.0),  # (height, width) that it is cut or padded to, as shares of the frame's
                flip_probability=0.5,
                beyond="mirror",  # what fills a view that is larger than the frame: mirror, or zero (black)
            ),
            entropy_weight=1.0,
            uncertainty_weight=0.1,
            decoders=4,
            dropout=0.5,  # probability that a decoder does not see a channel
            # Factor on the learning rate of the decoders, which start untrained. The public code's rates of a run add
            # up to 5e-5·10·3,200 = 1.6, those of the paper's optimiser to 2.5e-6·20,000/1.9 = 0.0263.
            decoder_multiplier=60.0,
            own=dict(  # the publication's optimiser, with optim.profile=own
                clips_per_device=2,
                clip_norm=0.0,
                learning_rate=5e-5,
                power=0.0,  # a constant rate
                steps=3_200,  # two passes over as many images, two a step
                decay_steps=3_200,
                multipliers=(("classifiers", 10.0), ("decoders", 10.0)),
            ),
        )
    )
    config.methods.hcl = ConfigDict(  # Historical Contrastive Learning, NeurIPS 2021; values of its public code
        dict(
            average_decay=0.996,
            refresh_every=300,  # steps until the historical network is replaced
            restart_average=True,  # the averaged network starts again from the trained one then
            pseudo_labels="source",  # network that makes them: source, historical or average
            label_statistics="running",  # what normalises then: running averages, or batch: as batch_norm.mode says
            auxiliary_weight=0.5,
            instance_weight=0.5,
            temperature=0.07,
            pixels=2145,  # contrasted in each clip: a crop of 256×512 has as many
            reliability_margin=0.1,
            projection=dict(hidden=2048, dim=128, init="random"),
            augment=stpl.augment.to_dict(),
            own=dict(
                clips_per_device=9,
                clip_norm=0.0,
                learning_rate=1e-4,
                warmup_steps=5_000,
                nesterov=True,
                steps=100_000,
                decay_steps=100_000,
                multipliers=(("classifiers", 10.0), ("projection", 10.0)),
            ),
        )
    )
    # Image-based adaptation with source data; weights and `own` as the publications' code has them.
    config.methods.fda = ConfigDict(  # Fourier Domain Adaptation, CVPR 2020
        dict(
            mirror=False,
            beta=0.01,  # half-width of the window of low frequencies, as a share of the shorter side; also 0.05, 0.09
            entropy_weight=0.005,
            entropy_power=2.0,  # η
            own=dict(
                clips_per_device=1,
                clip_norm=0.0,
                learning_rate=2.5e-4,
                steps=100_000,
                decay_steps=150_000,
                multipliers=(("classifiers", 10.0),),
            ),
        )
    )
    config.methods.pixmatch = ConfigDict(  # PixMatch, CVPR 2021
        dict(
            mirror=True,
            weight=0.1,  # of the consistency term
            crop=dict(
                # (height, width) of the resized crop, as shares of the frame: 410×410 of 512×1024; 512×512 of the
                # public code's 640×1280
                size=(0.8, 0.4),
                scale=(0.2, 1.0),  # share of the frame's area that is cut out
                ratio=(3 / 4, 4 / 3),  # stretch of width against height
            ),
            augment=dict(
                jitter_probability=0.8,
                brightness=0.2,  # added, share of 255
                contrast=0.2,  # factor, less 1
                hue=20 / 180,  # turns of the colour circle
                saturation=30 / 255,  # added to HSV's, share of its range
                value=20 / 255,  # added to HSV's, share of 255
                grey_probability=0.2,
                blur_probability=0.5,
                # Standard deviations of OpenCV's 3×3 kernel and, twice as often, its 5×5 one; pixels at a height of 512
                blur_radii=(0.71, 1.0, 1.0),
            ),
            own=dict(
                clips_per_device=1,
                clip_norm=0.0,
                learning_rate=1e-4,
                steps=40_000,
                decay_steps=40_000,
                multipliers=(("classifiers", 10.0),),
            ),
        )
    )
    config.methods.rda = ConfigDict(  # Robust Domain Adaptation, ICCV 2021
        dict(
            mirror=False,
            clip_norm=1.0,  # of the network's gradient, in place of optim.clip_norm
            bands=32,  # frequency bands of each channel
            share=0.1,  # of bands and channels that an attack replaces
            consistency=dict(main=1.0, auxiliary=1.0),  # weights of the distance between attacked and clean predictions
            adversarial=dict(main=1e-3, auxiliary=2e-4),  # λ
            content_weight=2e-4,
            content_bands=(2, 15),  # first and last band of shapes and outlines
            discriminator=dict(learning_rate=1e-4, betas=(0.9, 0.99), width=64),
            attacker=dict(learning_rate=1e-4, betas=(0.9, 0.99)),  # ours: the published gate gets no gradient
            own=dict(
                clips_per_device=1,
                clip_norm=0.0,
                learning_rate=2.5e-4,
                steps=120_000,
                decay_steps=250_000,
                multipliers=(("classifiers", 10.0),),
            ),
        )
    )
    # Video adaptation; weights and `own` as the publications' code has them.
    config.methods.da_vsn = ConfigDict(  # DA-VSN, ICCV 2021
        dict(
            mirror=False,
            weight=1e-3,  # of all terms but the supervised one (λ_u), and of pushing discriminators apart
            auxiliary_adversarial=0.2,  # of the adversarial terms on the auxiliary classifier
            propagation="splat",  # of x_{t-1}'s prediction to t: splat (public code: nearest pixel, holes) or warp
            clip_norm=1.0,  # of the network's gradient and of each discriminator's, in place of optim.clip_norm
            discriminator=dict(learning_rate=1e-4, betas=(0.9, 0.99), width=64),
            own=dict(
                clips_per_device=1,
                clip_norm=0.0,
                learning_rate=2.5e-4,
                steps=120_000,
                decay_steps=250_000,
                multipliers=(("classifiers", 10.0),),
            ),
        )
    )
    config.methods.vat_vst = ConfigDict(  # VAT-VST, 2021; there is no public code: the values are ours
        dict(
            mirror=False,  # as DA-VSN
            stage1_share=0.5,  # of optim.decay_steps that are adversarial training; self-training follows
            weight=1e-3,  # of the adversarial term, as DA-VSN
            auxiliary_adversarial=0.2,  # as DA-VSN
            discriminator=dict(learning_rate=1e-4, betas=(0.9, 0.99), width=64),  # as DA-VSN
            window=3,  # frames, x_t among them, whose predictions are averaged and have to agree
            threshold=0.5,  # least averaged probability of a pseudo-label
            own=dict(
                clips_per_device=1,
                clip_norm=0.0,
                learning_rate=2.5e-4,
                steps=40_000,
                decay_steps=40_000,
                multipliers=(("classifiers", 10.0),),
            ),
        )
    )
    config.methods.tps = ConfigDict(  # TPS, ECCV 2022
        dict(
            mirror=False,
            target_weight=0.1,  # λ for VIPER; 1.0 for SYNTHIA-Seq
            flip_probability=0.5,  # that the clip which pseudo-labels come from is mirrored
            scale=(0.8, 1.2),  # smallest and largest factor that the augmented clip is scaled by
            as_published=False,  # with two faults of the public code, which stpl_jax/methods/tps.py describes
            augment=stpl.augment.to_dict() | dict(grey_probability=0.2),
            own=dict(
                clips_per_device=1,
                clip_norm=0.0,
                # Beside λ 0.1, for VIPER. 2.5e-4 beside λ 1, for SYNTHIA-Seq, and beside λ 0.5, in older public code.
                learning_rate=1e-4,
                steps=40_000,
                decay_steps=250_000,
                multipliers=(("classifiers", 10.0),),
            ),
        )
    )

    config.evaluate = ConfigDict(
        dict(
            every=2000,  # steps between validations; 0: at the end only
            clips_per_device=1,
            # score, at the end, each clip as it is predicted on the way: in time order, trained on after; of rows that
            # read unlabelled target clips alone
            online=False,
        )
    )
    config.checkpoint = ConfigDict(dict(every=1000, keep=2))  # steps; newest kept
    config.report = ConfigDict(
        dict(
            frames=8,  # validation frames that the report shows
            analysis=False,  # compare source_only and the adapted row as --mode=analyse does, and show that, too
        )
    )
    config.label = ConfigDict(dict(count=20))  # held-out frames that --mode=choose_frames writes
    config.analysis = ConfigDict(  # of feature space, --mode=analyse
        dict(
            clips=100,  # validation clips, drawn at random, whose pixels are looked at
            pixels=500,  # of each class; fewer where there are fewer (paper, Figure 7)
            neighbours=(1, 2, 5, 10, 20, 50, 100, 200, 499),  # values of k (paper, Figure 7)
            tsne_pixels=100,  # of each class in the scatter plots
            tsne_classes=("road", "light", "car", "bicycle"),  # paper, Figure 6; a second plot shows all (Figure 8)
            frames=3,  # whose feature maps are drawn
        )
    )

    # Rows of the results table: what each changes in this configuration. A row without `method` is the method it names.
    config.rows = ConfigDict()
    config.rows.source_only = ConfigDict(
        dict(
            optim=dict(
                learning_rate=2.5e-4,
                steps=40_000,
                decay_steps=250_000,
                multipliers=(("classifiers", 10.0),),  # the public code's scheduler misplaces it
            )
        )
    )
    config.rows.oracle = ConfigDict(config.rows.source_only.to_dict())
    for percent in (25, 75):
        alpha = dict(alpha_bn=dict(alpha=percent / 100))
        config.rows[f"alpha_bn_{percent}"] = ConfigDict(dict(method="alpha_bn", methods=alpha))
    # Nothing is trained: one step, which leaves a checkpoint.
    config.rows.blend = ConfigDict(dict(batch_norm=dict(choose_prior=True), optim=dict(steps=1, decay_steps=1)))
    config.rows.ubna = ConfigDict(dict(optim=dict(steps=50)))  # its momentum is 2% of the first one by then
    # Tables 1 and 2: the starred rows. Table 4: the fusions.
    for name in ("da_vsn", "vat_vst", "tps"):
        config.rows[f"{name}_free"] = ConfigDict(dict(method=name, source_free=True))
    for name in ("add", "conv1x1", "concat"):
        config.rows[f"stpl_{name}"] = ConfigDict(dict(method="stpl", methods=dict(stpl=dict(fusion=name))))
    return config
