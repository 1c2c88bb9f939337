"""Teach a model to work under STC-Cacher: `python -m recipes.cache_aware --model FOLDER --videos FOLDER`.

The frozen model is the teacher: what it answers from its dense tower is the target. The student is the same model with
low-rank adapters in the tower, the projector and the language model (or some of them). It sees the same frames through
the tower under the published Cacher, and some of them densely, so that nothing is lost where nothing is saved. No
labels: any video, and questions without answers. The adapters are merged, and the result is a checkpoint like the one
given.

Why answers and not features: a token that is not computed anew cannot tell of what changed elsewhere, and the features
of a tower that never saw the Cacher do; such a target cannot be met (`docs/log.md`). What the token's own patch shows
does come through, along the residual path, in a form that projector and language model have to learn to read.
"""
