"""Which training clips teach a video model a motion, and which spoil it.

The method is Motive (Wu et al., ICML 2026):

1. optical flow says where and how much each clip moves (`motion`);
2. that mask weighs the model's loss, not the video (`models/loss.py`);
3. the gradient of the masked loss is projected to 512 numbers as backward produces it (`attribution/gradients.py`,
   `projection/`);
4. the cosine of a clip's and a query's projections is the clip's influence on the query (`ranking`);
5. the best tenth of the clips is fine-tuned on, beside controls (`training/loop.py`).

Start with ``pipeline.config.load("demo")`` and the jobs: ``python -m jobs.demo``.
"""
