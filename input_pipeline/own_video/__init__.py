"""From a folder of somebody's videos and frames to clips: what there is, which parts are usable, which are kept."""
