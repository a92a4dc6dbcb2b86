"""All data sets that can be read, by name: to add one, write its file in this folder and enter it here."""

from input_pipeline.datasets import camvid, cityscapes_seq, own_video, synthia_seq, viper

_ALL = (viper.VIPER, synthia_seq.SYNTHIA_SEQ, cityscapes_seq.CITYSCAPES_SEQ, camvid.CAMVID, own_video.OWN_VIDEO)
DATASETS = {dataset.name: dataset for dataset in _ALL}
