"""All data sets that can be read, by name: to add one, write its file in this folder and enter it here."""

from input_pipeline.datasets import cityscapes_seq, synthia_seq, viper

DATASETS = {dataset.name: dataset for dataset in (viper.VIPER, synthia_seq.SYNTHIA_SEQ, cityscapes_seq.CITYSCAPES_SEQ)}
