#!/usr/bin/env python
"""Train or evaluate as with Detectron2's own train_net.py; `bucketrank train` does more.

python train_net.py --config-file retinanet_R_50_FPN_1x --num-gpus 8 MODEL.RANKING.LOSS rs-exact
"""

import sys
from pathlib import Path

from detectron2.engine import default_argument_parser

from bucketed_ranking.engine import inference, run_folder, runs, setup
from bucketed_ranking.engine.processes import Processes
from bucketed_ranking.errors import BucketRankError


def main() -> None:
    args = default_argument_parser().parse_args()
    cfg = setup.load_config(args.config_file, options=args.opts)
    setup.configure_datasets(cfg, *setup.choose_datasets(cfg, None, None, None))
    if args.eval_only:
        detector = inference.build_detector(cfg, cfg.MODEL.WEIGHTS)
        inference.evaluate(detector, cfg.DATASETS.TEST[0], Path(cfg.OUTPUT_DIR))
        return
    run_folder.choose_seed(cfg, None, args.resume)
    several = args.num_gpus > 1
    url = args.dist_url if args.num_machines > 1 else "auto"
    processes = Processes(args.num_gpus, args.num_machines, args.machine_rank, url, several)
    runs.train(cfg, resume=args.resume, processes=processes)


if __name__ == "__main__":
    try:
        main()
    except BucketRankError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
